"""Choices of stages that contradict each other, refused before anything is built or read."""

from collections.abc import Mapping, Sequence
from typing import Any

from merc.config import locate, target_of
from merc.errors import MercError

_SINGLE_HEAD = "choose classifier=single_head objective=fused balancing=none, or fusion=none"


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether no prediction may depend on a later utterance: ``model.causal``, or else a graph without the future."""
    causal = config["model"]["causal"]
    return config["graph"]["future"] == 0 if causal is None else bool(causal)


def refuse_contradictions(config: Mapping[str, Any]) -> None:
    """Refuse stages that cannot work together.

    What a class needs and offers is written on it:

    - a fusion with ``joint = True`` leaves one set of rows for all modalities;
    - a classifier with ``unimodal_heads = True`` classifies each modality on its own as well;
    - a balancing policy with ``needs_unimodal_heads = True`` compares modalities by these heads, one with
      ``steers_dropout = True`` acts through ``balancing.mechanism``.

    Args:
        config: the plain resolved configuration of a run.

    Raises:
        MercError: two stages contradict each other; the message says which choice mends it.
    """
    _refuse_later_utterances(config)
    plugins = config["plugins"]
    fusion = config["fusion"]["module"]
    policy = config["balancing"]["policy"]
    unimodal_heads = _declares(config["classifier"], "unimodal_heads", plugins)
    if _declares(fusion, "joint", plugins) and unimodal_heads:
        raise MercError(
            f"{_name(fusion)} makes one vector of all modalities, but {_name(config['classifier'])} needs the rows of "
            f"each modality for a head of its own: {_SINGLE_HEAD}."
        )
    if _declares(policy, "steers_dropout", plugins) and config["balancing"]["mechanism"] is None:
        raise MercError(
            f"{_name(policy)} decides how often modalities are dropped, but balancing.mechanism, which drops them, is "
            "null: keep the mechanism of the balancing choice, or choose balancing=none."
        )
    if unimodal_heads:
        return
    if _declares(policy, "needs_unimodal_heads", plugins):
        raise MercError(
            f"{_name(policy)} compares the modalities by their own predictions, but {_name(config['classifier'])} has "
            "no head for each of them: choose balancing=none or balancing=fixed, or classifier=summed_logits."
        )
    if _weighs_modalities(config["objective"]):
        raise MercError(
            f"objective.unimodal_weight={config['objective']['unimodal_weight']} asks for a loss of each modality, but "
            f"{_name(config['classifier'])} has no head for each of them: choose objective=fused (or "
            "objective.unimodal_weight=0), or classifier=summed_logits."
        )


def _refuse_later_utterances(config: Mapping[str, Any]) -> None:
    if not is_causal(config):
        return
    for name, choice in config["denoiser"].items():
        if isinstance(choice, Mapping) and choice.get("bidirectional"):
            raise MercError(
                f"{_name(choice)} reads dialogues in both directions, but no prediction may depend on a later "
                "utterance (graph.future=0 or model.causal=true): add "
                f"denoiser.{name}.bidirectional=false, or model.causal=false."
            )


def _declares(node: Mapping[str, Any] | None, attribute: str, plugins: Sequence[str]) -> bool:
    return node is not None and bool(getattr(locate(node, plugins), attribute, False))


def _weighs_modalities(objective: Mapping[str, Any]) -> bool:
    weight = objective.get("unimodal_weight", 0)
    return any(weight.values()) if isinstance(weight, Mapping) else bool(weight)


def _name(node: Mapping[str, Any]) -> str:
    return str(target_of(node)).rsplit(".", 1)[-1]
