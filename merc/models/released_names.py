"""What the names of the released checkpoints of both methods have in common."""

from collections.abc import Iterator, Mapping

from torch import Tensor

PROJECTIONS = {"text": "textf_input", "audio": "acouf_input", "visual": "visuf_input"}

View = tuple[str, Tensor]


def linear(tensors: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[View]:
    """Weight and bias of a linear map or a norm."""
    yield f"{theirs}.weight", tensors[f"{ours}.weight"]
    yield f"{theirs}.bias", tensors[f"{ours}.bias"]


def common(tensors: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Iterator[View]:
    """Speakers, projections, heads and gates."""
    yield "speaker_embeddings.weight", tensors["speaker_embedding.table.weight"]
    for modality in modalities:
        yield from linear(tensors, f"projection.branches.{modality}", PROJECTIONS[modality])
        yield from linear(tensors, f"classifier.heads.branches.{modality}.2", f"{modality[0]}_output_layer.2")
        if modality != "text":
            yield from linear(tensors, f"gate.branches.{modality}.linear", f"{modality[0]}gate.gate.0")
