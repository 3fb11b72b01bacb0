"""What every model returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Class scores of a batch of N utterances over C classes.

    Attributes:
        fused: (N, C) logits of the whole model; their argmax is the prediction.
        unimodal: modality → (N, C) logits of that modality's own head, before any fusion weight.
        kept: (N,) bool, False where balancing left an utterance without any modality: neither its logits nor its
            label count in the loss. None: every utterance counts.
    """

    fused: Tensor
    unimodal: Mapping[str, Tensor]
    kept: Tensor | None = None

    def rows(self, wanted: Tensor | slice) -> Self:
        """The utterances with these (N',) int64 indices, or in this range."""
        return type(self)(
            fused=self.fused[wanted],
            unimodal={modality: logits_NC[wanted] for modality, logits_NC in self.unimodal.items()},
            kept=None if self.kept is None else self.kept[wanted],
        )
