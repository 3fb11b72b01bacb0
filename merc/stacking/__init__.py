"""Several seeds of one configuration trained at once, by stacking their parameters."""

from merc.stacking.refusals import refuse_stacking
from merc.stacking.training import train_together

__all__ = ["refuse_stacking", "train_together"]
