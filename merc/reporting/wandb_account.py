"""Whether Weights & Biases is spoken to, or logs to files that ``wandb sync`` sends later."""

import os


def wandb_mode(mode: str) -> str:
    """``auto`` as it works out here; any other mode as it is."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")


def has_account() -> bool:
    """Whether an API key is known here."""
    import wandb

    return bool(wandb.api.api_key)
