"""From a configuration and a corpus to a model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from merc.combinations import is_causal, refuse_contradictions
from merc.config import instantiate, target_of
from merc.data.conversation import CorpusInfo
from merc.errors import MercError
from merc.models.emotion_model import EmotionModel, SpeakerEmbedding, linear_projection
from merc.models.graphs import SpeakerGraphs
from merc.models.objectives.class_weights import names_a_file, read_weights
from merc.models.stages import FUSED, PerModality


def build_model(config: Mapping[str, Any], info: CorpusInfo) -> EmotionModel:
    """The model that a configuration describes, for the modalities, classes and speakers of a corpus.

    Args:
        config: the plain resolved configuration of a run (:func:`merc.config.plain`).
        info: dimensions and counts of the corpus.

    Raises:
        MercError: a stage cannot be built with its settings, or the stages do not go together.
    """
    refuse_contradictions(config)
    hidden_dim = config["model"]["hidden_dim"]
    plugins = config["plugins"]
    denoiser = _per_modality(config["denoiser"], info.modalities, plugins)
    fusion = _optional(config["fusion"]["module"], plugins, modalities=info.modalities)
    classified = (FUSED,) if getattr(fusion, "joint", False) else info.modalities
    if fusion is not None:
        _hold(fusion, plugins, _returning(classified))
    return EmotionModel(
        projection=linear_projection(info.dims, hidden_dim),
        speaker_embedding=SpeakerEmbedding(info.speaker_slots, hidden_dim) if denoiser.branches else None,
        denoiser=denoiser,
        graph=_graphs(config["graph"], info.modalities, plugins),
        gate=_per_modality(config["gate"], info.modalities, plugins),
        balancing=_optional(config["balancing"]["mechanism"], plugins, modalities=info.modalities),
        fusion=fusion,
        classifier=_part(config["classifier"], plugins, modalities=classified, num_classes=len(info.label_names)),
        pad_dialogues=config["model"]["pad_dialogues"],
        causal=is_causal(config),
    )


def build_objective(config: Mapping[str, Any], info: CorpusInfo) -> nn.Module:
    """The training objective of a configuration, with class weights from the corpus' training split.

    Raises:
        MercError: a setting of the objective is wrong, or its file of class weights.
    """
    return _part(
        config["objective"],
        config["plugins"],
        modalities=info.modalities,
        class_counts=info.class_counts,
        label_names=info.label_names,
    )


def self_contained(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a file of class weights replaced by its content, so that a checkpoint needs no file.

    Raises:
        MercError: the file cannot be read.
    """
    objective = config["objective"]
    if not names_a_file(objective.get("class_weights")):
        return dict(config)
    return {**config, "objective": {**objective, "class_weights": read_weights(Path(objective["class_weights"]))}}


def _part(node: Mapping[str, Any], plugins: Sequence[str], **arguments: Any) -> nn.Module:
    # A configuration may come from the checkpoint of somebody else: nothing but modules is built from it.
    return instantiate(node, plugins, nn.Module, **arguments)


def _optional(node: Mapping[str, Any] | None, plugins: Sequence[str], **arguments: Any) -> nn.Module | None:
    return None if node is None else _part(node, plugins, **arguments)


def _choices(node: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Modality → the module chosen for it, its own or the stage's default; modalities without one are left out."""
    choices = {modality: node.get(modality, node["default"]) for modality in modalities}
    return {modality: choice for modality, choice in choices.items() if target_of(choice) is not None}


def _per_modality(node: Mapping[str, Any], modalities: Sequence[str], plugins: Sequence[str]) -> PerModality:
    return PerModality({m: _of_rows(choice, plugins) for m, choice in _choices(node, modalities).items()})


def _of_rows(node: Mapping[str, Any], plugins: Sequence[str]) -> nn.Module:
    """A part that maps rows to rows; one of the user's own is held to that."""
    part = _part(node, plugins)
    _hold(part, plugins, _refuse_other_rows)
    return part


def _hold(part: nn.Module, plugins: Sequence[str], hook: Callable[..., None]) -> None:
    """Have a part of the user's own looked at after every call."""
    if type(part).__module__.split(".")[0] in plugins:
        part.register_forward_hook(hook)


def _refuse_other_rows(part: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
    given = tuple(inputs[0].shape)
    if not isinstance(out, Tensor) or out.shape != given:
        returned = f"{tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise MercError(
            f"{type(part).__qualname__} was given rows of shape {given} and returned {returned}. The next stage takes "
            "rows of the same shape (docs/extending.md)."
        )


def _returning(names: Sequence[str]) -> Callable[..., None]:
    """What refuses a fusion that returns rows of other names."""

    def refuse(part: nn.Module, _: Any, out: Mapping[str, Any]) -> None:
        if set(out) != set(names):
            raise MercError(
                f"{type(part).__qualname__} returned rows of {', '.join(out)}, and the classifier takes "
                f"{', '.join(names)}. A fusion that makes one vector of all says so: joint = True (docs/extending.md)."
            )

    return refuse


def _graphs(node: Mapping[str, Any], modalities: Sequence[str], plugins: Sequence[str]) -> SpeakerGraphs:
    return SpeakerGraphs(
        layers={
            m: {subgraph: [_of_rows(choice, plugins) for _ in range(node["layers"])] for subgraph in node["subgraphs"]}
            for m, choice in _choices(node, modalities).items()
        },
        past=node["past"],
        future=node["future"],
        self_loops=node["self_loops"],
        share_relations=node["share_relations"],
        cross_modal=_cross_modal(node, modalities, plugins),
    )


def _cross_modal(node: Mapping[str, Any], modalities: Sequence[str], plugins: Sequence[str]) -> nn.Module | None:
    edges = dict(node["cross_modal"])
    if edges["_target_"] is None:
        return None
    reach = edges.pop("reach")
    window = {"past": min(reach, node["past"]), "future": min(reach, node["future"])}
    return _part(edges, plugins, modalities=modalities, **window)
