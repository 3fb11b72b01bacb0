"""The tensor names of ReDiFu's released checkpoints, see :mod:`merc.models.released`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from merc.models.released_names import View, common, linear

SUBGRAPHS = {"inter_speaker": "gatTer", "intra_speaker": "gatT"}


def views(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Iterator[View]:
    """Released name and view of our tensor, for every tensor of a released checkpoint."""
    yield from common(tensors, modalities)
    for subgraph, theirs in SUBGRAPHS.items():
        yield from _graph(tensors, f"graph.branches.branches.text.layers.{subgraph}.0", theirs)
    for modality in (m for m in modalities if m != "text"):
        yield from _encoder(tensors, f"denoiser.branches.{modality}", f"{modality[0]}_{modality[0]}")
    for modality in modalities:
        yield from _fusion(tensors, f"fusion.fusions.{modality}", modality[0])
        yield from linear(tensors, f"fusion.norms.{modality}", f"mutual_former.norm_{modality[0]}")


def _graph(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    for head in range(tensors[f"{ours}.heads.weight"].shape[0]):
        yield from _attention(tensors, f"{ours}.heads", f"{theirs}.attentions.{head}", head)
    yield from _attention(tensors, f"{ours}.output", f"{theirs}.out_att", 0)
    yield from linear(tensors, f"{ours}.linear", f"{theirs}.fc")
    yield from linear(tensors, f"{ours}.norm", f"{theirs}.layer_norm")


def _attention(tensors: Mapping[str, Tensor], ours: str, theirs: str, head: int) -> Iterator[View]:
    yield f"{theirs}.W", tensors[f"{ours}.weight"][head]
    yield f"{theirs}.a", tensors[f"{ours}.scores.vector"][head][:, None]
    yield f"{theirs}.layer_norm.weight", tensors[f"{ours}.norm.weight"][head]
    yield f"{theirs}.layer_norm.bias", tensors[f"{ours}.norm.bias"][head]
    # One table for all layers, in our model as in the released one, whose checkpoints repeat it under every layer.
    yield f"{theirs}.relation_embedding.weight", tensors[RELATION_TABLE][0]


RELATION_TABLE = "graph.branches.branches.text.layers.inter_speaker.0.heads.scores.relation_table"


def _encoder(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    if f"{ours}.positions.modality_scales" in tensors:
        yield f"{theirs}.pos_emb.modality_scales", tensors[f"{ours}.positions.modality_scales"]
    yield from linear(tensors, f"{ours}.delta.convolution", f"{theirs}.delta_net.conv")
    yield from linear(tensors, f"{ours}.delta.norm", f"{theirs}.delta_net.norm")
    yield from linear(tensors, f"{ours}.delta.gate", f"{theirs}.delta_net.gate.0")
    yield f"{theirs}.delta_net.alpha", tensors[f"{ours}.delta.alpha"]
    yield from linear(tensors, f"{ours}.context_gate.norm", f"{theirs}.context_gate.norm")
    yield from linear(tensors, f"{ours}.context_gate.score.0", f"{theirs}.context_gate.w.0")
    yield from linear(tensors, f"{ours}.context_gate.score.2", f"{theirs}.context_gate.w.2")
    yield from linear(tensors, f"{ours}.input_norm", f"{theirs}.pre_norm")
    layer = f"{theirs}.internal_transformer.0"
    yield from linear(tensors, f"{ours}.attention.query_key_value", f"{layer}.self_attn.qkv")
    yield from linear(tensors, f"{ours}.attention.output", f"{layer}.self_attn.out")
    yield f"{layer}.self_attn.lambda_", tensors[f"{ours}.attention.weight"]
    yield from linear(tensors, f"{ours}.attention_norm", f"{layer}.norm1")
    yield from linear(tensors, f"{ours}.output_norm", f"{layer}.norm2")
    yield from linear(tensors, f"{ours}.feed_forward_norm", f"{layer}.feed_forward.layer_norm")
    yield from linear(tensors, f"{ours}.expand", f"{layer}.feed_forward.w_1")
    yield from linear(tensors, f"{ours}.contract", f"{layer}.feed_forward.w_2")


def _fusion(tensors: Mapping[str, Tensor], ours: str, letter: str) -> Iterator[View]:
    yield f"mutual_former.attn_{letter}.qkv.weight", tensors[f"{ours}.attention.query_key_value.weight"]
    yield from linear(tensors, f"{ours}.attention.output", f"mutual_former.attn_{letter}.proj")
    yield from linear(tensors, f"{ours}.gate", f"mutual_former.gate_{letter}.gate.0")
    for layer in range(4):
        yield from linear(tensors, f"{ours}.feed_forward.{layer}", f"mutual_former.mlp_{letter}.layers.{3 * layer}")
