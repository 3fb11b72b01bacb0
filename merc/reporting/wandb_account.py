"""How Weights & Biases is spoken to: at once, or by files for ``wandb sync``; how runs are grouped there."""

import os

from merc.sweeping.manifest import Manifest


def wandb_mode(mode: str) -> str:
    """``auto`` as it works out here; any other mode as it is."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")


def has_account() -> bool:
    """Whether an API key is known here."""
    import wandb

    return bool(wandb.api.api_key)


def run_group(sweep: Manifest, variant: str) -> str:
    """The group of a variant's runs; the service takes 128 characters."""
    return f"{sweep.experiment}: {variant} ({sweep.name})"[:128]


def tag(experiment: str) -> str:
    """The tag of an experiment's runs; the service takes 64 characters."""
    return experiment[:64]
