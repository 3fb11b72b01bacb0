"""Lightning's remarks that say nothing to a user of merc, switched off."""

import logging
import warnings

from lightning.fabric.utilities.warnings import PossibleUserWarning


def quiet_lightning() -> None:
    """Leave Lightning its warnings and errors, without hardware chatter, advertisements and advice on data loaders."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Workers for the loaders, modules in eval mode, few batches per logging interval: all as intended here.
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec", category=FutureWarning)
    # A remark of DistributedDataParallel on the layout of small gradients.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
