"""Several seeds of one configuration trained at once, by stacking their parameters."""

from merc.stacking.training import train_together

__all__ = ["train_together"]
