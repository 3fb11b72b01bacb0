"""Released checkpoints: the names of their tensors, as views into our model's.

The released model names every modality, subgraph and head; ours keeps modalities and subgraphs in dictionaries, and
heads, signs and projections that are computed together in one tensor. Each released tensor is thus a view of one of
ours. The same views serve to load weights and to compare gradients.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from merc.errors import MercError, nearest
from merc.models.denoisers.positions import sinusoids
from merc.models.emotion_model import EmotionModel

LETTERS = {"text": "T", "audio": "A", "visual": "V"}
PROJECTIONS = {"text": "textf_input", "audio": "acouf_input", "visual": "visuf_input"}
SUBGRAPHS = {"inter_speaker": "er", "intra_speaker": ""}

View = tuple[str, Tensor]


def released_views(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> dict[str, Tensor]:
    """Released name → view of our tensor of the same meaning.

    Args:
        tensors: our parameter names → tensors of the parameters' shapes (weights or gradients).
        modalities: those of the model.
    """
    return dict(_views(tensors, modalities))


def _views(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Iterator[View]:
    yield "speaker_embeddings.weight", tensors["speaker_embedding.table.weight"]
    for modality in modalities:
        yield from _linear(tensors, f"projection.branches.{modality}", PROJECTIONS[modality])
        yield from _linear(tensors, f"classifier.heads.branches.{modality}.2", f"{modality[0]}_output_layer.2")
        for subgraph, suffix in SUBGRAPHS.items():
            ours = f"graph.branches.branches.{modality}.layers.{subgraph}"
            yield from _graph(tensors, ours, f"gat{LETTERS[modality]}{suffix}")
    for modality in (m for m in modalities if m != "text"):
        yield from _linear(tensors, f"gate.branches.{modality}.linear", f"{modality[0]}gate.gate.0")
        letter = modality[0]
        yield from _transformer(
            tensors, f"denoiser.branches.{modality}.layers.0", f"{letter}_{letter}.transformer_inter.0"
        )


def _linear(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    yield f"{theirs}.weight", tensors[f"{ours}.weight"]
    yield f"{theirs}.bias", tensors[f"{ours}.bias"]


def _transformer(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    yield from _linear(tensors, f"{ours}.attention_norm", f"{theirs}.layer_norm")
    for kind in ("weight", "bias"):
        fused = tensors[f"{ours}.attention.query_key_value.{kind}"]
        for name, part in zip("qkv", fused.chunk(3), strict=True):
            yield f"{theirs}.self_attn.linear_{name}.{kind}", part
    yield from _linear(tensors, f"{ours}.attention.output", f"{theirs}.self_attn.linear")
    yield from _linear(tensors, f"{ours}.feed_forward.0", f"{theirs}.feed_forward.layer_norm")
    yield from _linear(tensors, f"{ours}.feed_forward.1", f"{theirs}.feed_forward.w_1")
    yield from _linear(tensors, f"{ours}.feed_forward.4", f"{theirs}.feed_forward.w_2")


def _graph(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    for head in range(tensors[f"{ours}.heads.weight"].shape[0]):
        yield from _attention(tensors, f"{ours}.heads", f"{theirs}.attention_{head}", head)
    yield from _attention(tensors, f"{ours}.output", f"{theirs}.out_att", 0)
    yield from _linear(tensors, f"{ours}.linear", f"{theirs}.fc")
    yield from _linear(tensors, f"{ours}.norm", f"{theirs}.layer_norm")


def _attention(tensors: Mapping[str, Tensor], ours: str, theirs: str, head: int) -> Iterator[View]:
    yield f"{theirs}.W", tensors[f"{ours}.weight"][head]
    yield f"{theirs}.layer_norm.weight", tensors[f"{ours}.norm.weight"][head]
    yield f"{theirs}.layer_norm.bias", tensors[f"{ours}.norm.bias"][head]
    yield f"{theirs}.relation_embedding.weight", tensors[f"{ours}.scores.relation_table"][head]
    for sign, suffix in enumerate(("pos", "neg")):
        for kind, name in (("left", "a_left"), ("right", "a_right"), ("relation", "a_rel")):
            vectors = tensors[f"{ours}.scores.{kind}"]
            yield f"{theirs}.{name}_{suffix}.weight", vectors[2 * head + sign : 2 * head + sign + 1]
        for side in ("left", "right"):
            yield f"{theirs}.lambda_{side}{sign + 1}", tensors[f"{ours}.lambda_{side}"][head, sign]


def load_released(model: EmotionModel, state: Mapping[str, Tensor]) -> None:
    """Copy a released state dict into a model built with ``model=amb_dsgdn_released``.

    Args:
        model: built for the same modalities and sizes.
        state: the released state dict; its position tables are checked, not copied.

    Raises:
        MercError: the model is of another kind, or a tensor is missing, left over, of another shape, or not what the
            method prescribes. Nothing is copied then.
    """
    modalities = tuple(model.projection.branches)
    try:
        views = released_views({name: p.data for name, p in model.named_parameters()}, modalities)
    except KeyError as error:
        raise MercError(
            f"Released checkpoints fit model=amb_dsgdn_released only; this model has no {error}."
        ) from error
    tables = {name: table for name, table in state.items() if name.endswith(".pos_emb.pe")}
    for name, table in tables.items():
        expected = sinusoids(table.shape[-2], table.shape[-1])
        if not torch.allclose(table[0], expected, atol=1e-5):
            raise MercError(f"The checkpoint's positions '{name}' are not the sine-cosine table of the method.")
    given = {name: tensor for name, tensor in state.items() if name not in tables}
    for name in given.keys() - views.keys():
        raise MercError(f"The checkpoint's tensor '{name}' has no place in this model.{nearest(name, views)}")
    for name, view in views.items():
        if name not in given:
            raise MercError(f"The checkpoint lacks the tensor '{name}'.")
        if given[name].shape != view.shape:
            raise MercError(
                f"The checkpoint's tensor '{name}' has shape {tuple(given[name].shape)}, the model's "
                f"{tuple(view.shape)}: dimensions, classes or hidden_dim differ."
            )
    for name, view in views.items():
        view.copy_(given[name])


def tensors_of(model: nn.Module, gradients: bool = False) -> dict[str, Tensor]:
    """Parameter name → its values, or its gradients (zeros where there is none)."""
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad) if gradients else p.data
        for name, p in model.named_parameters()
    }
