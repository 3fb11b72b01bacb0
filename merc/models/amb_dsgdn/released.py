"""The tensor names of AMB-DSGDN's released checkpoints, see :mod:`merc.models.released`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from merc.models.released_names import View, common, linear

LETTERS = {"text": "T", "audio": "A", "visual": "V"}
SUBGRAPHS = {"inter_speaker": "er", "intra_speaker": ""}


def views(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Iterator[View]:
    """Released name and view of our tensor, for every tensor of a released checkpoint."""
    yield from common(tensors, modalities)
    for modality in modalities:
        for subgraph, suffix in SUBGRAPHS.items():
            ours = f"graph.branches.branches.{modality}.layers.{subgraph}.0"
            yield from _graph(tensors, ours, f"gat{LETTERS[modality]}{suffix}")
    for modality in (m for m in modalities if m != "text"):
        theirs = f"{modality[0]}_{modality[0]}.transformer_inter.0"
        yield from _transformer(tensors, f"denoiser.branches.{modality}.layers.0", theirs)


def _transformer(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    yield from linear(tensors, f"{ours}.attention_norm", f"{theirs}.layer_norm")
    for kind in ("weight", "bias"):
        fused = tensors[f"{ours}.attention.query_key_value.{kind}"]
        for name, part in zip("qkv", fused.chunk(3), strict=True):
            yield f"{theirs}.self_attn.linear_{name}.{kind}", part
    yield from linear(tensors, f"{ours}.attention.output", f"{theirs}.self_attn.linear")
    yield from linear(tensors, f"{ours}.feed_forward.0", f"{theirs}.feed_forward.layer_norm")
    yield from linear(tensors, f"{ours}.feed_forward.1", f"{theirs}.feed_forward.w_1")
    yield from linear(tensors, f"{ours}.feed_forward.2", f"{theirs}.feed_forward.w_2")


def _graph(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    for head in range(tensors[f"{ours}.heads.weight"].shape[0]):
        yield from _attention(tensors, f"{ours}.heads", f"{theirs}.attention_{head}", head)
    yield from _attention(tensors, f"{ours}.output", f"{theirs}.out_att", 0)
    yield from linear(tensors, f"{ours}.linear", f"{theirs}.fc")
    yield from linear(tensors, f"{ours}.norm", f"{theirs}.layer_norm")


def _attention(tensors: Mapping[str, Tensor], ours: str, theirs: str, head: int) -> Iterator[View]:
    yield f"{theirs}.W", tensors[f"{ours}.weight"][head]
    yield f"{theirs}.layer_norm.weight", tensors[f"{ours}.norm.weight"][head]
    yield f"{theirs}.layer_norm.bias", tensors[f"{ours}.norm.bias"][head]
    yield f"{theirs}.relation_embedding.weight", tensors[f"{ours}.scores.relation_table"][head]
    vectors = tensors[f"{ours}.scores.vector"]
    half = tensors[f"{ours}.lambda_left"].shape[-1]
    parts = {"a_left": slice(0, half), "a_right": slice(half, 2 * half), "a_rel": slice(2 * half, None)}
    for sign, suffix in enumerate(("pos", "neg")):
        index = 2 * head + sign
        for name, part in parts.items():
            yield f"{theirs}.{name}_{suffix}.weight", vectors[index : index + 1, part]
        for side in ("left", "right"):
            yield f"{theirs}.lambda_{side}{sign + 1}", tensors[f"{ours}.lambda_{side}"][head, sign]
