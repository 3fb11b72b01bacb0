"""The values that numbers of the configuration may have, wherever their key stands."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merc.errors import MercError

COUNTS = {
    "annealing_epochs", "batch_size", "draws", "evaluation_batch_size", "fusion_heads", "heads", "hidden_dim", "layers",
    "max_epochs", "output_depth", "rank", "speaker_slots",
}  # fmt: skip
"""Whole numbers from 1."""

DISTANCES = {"future", "past", "profile_steps", "reach", "seed", "warmup_epochs", "window"}
"""Whole numbers from 0."""

PROBABILITIES = {"base_probability", "dropout", "execute_probability", "probability"}
"""Numbers from 0 to 1."""

# These constructors check their own arguments, which may bear the same names.
_CHECKED_ELSEWHERE = ("torch.", "torchmetrics.", "lightning.")


def refuse_out_of_range(config: Mapping[str, Any]) -> None:
    """Refuse counts that are not whole or below 1, distances below 0, and probabilities outside 0 to 1.

    Null passes where a configuration has it: whoever reads it says what it means.

    Args:
        config: the plain resolved configuration of a run.

    Raises:
        MercError: a value is out of range; the message names the key that it comes from.
    """
    for key, value in _sources_first(config):
        if needed := _needed(key.rsplit(".", 1)[-1], value):
            raise MercError(f"{key}={value}: give {needed}.")


def _sources_first(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf, those that others follow from before them."""
    hyperparameters, trainer = config.get("hyperparameters", {}), config.get("trainer", {})
    for name, node in (("hyperparameters", hyperparameters), ("trainer", trainer)):
        if "max_epochs" in node:
            yield f"{name}.max_epochs", node["max_epochs"]
    yield from _numbers({"hyperparameters": hyperparameters, **config}, config.get("plugins", ()))


def _needed(name: str, value: Any) -> str | None:
    """What the value of a key should be instead; None when it is fine."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in COUNTS and not (whole and value >= 1):
        return "a whole number of at least 1"
    if name in DISTANCES and not (whole and value >= 0):
        return "a whole number of at least 0"
    if name in PROBABILITIES and not (isinstance(value, int | float) and 0 <= value <= 1):
        return "a number between 0 and 1"
    return None


def _numbers(node: Mapping[str, Any], plugins: Sequence[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf that merc itself reads."""
    if str(node.get("_target_")).startswith((*_CHECKED_ELSEWHERE, *(f"{name}." for name in plugins))):
        return
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, plugins, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
