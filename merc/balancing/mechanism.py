"""Modality dropout: the mechanism (AMB-DSGDN Eq. 25-27)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.stages import Rows


class ModalityDropout(nn.Module):
    """Drops whole modalities of whole dialogues and rescales what is left.

    A policy sets the probabilities; until then, and in evaluation, nothing is dropped. What changes in a step lies in
    buffers, so that all seeds of a stack may take it at once.

    Args:
        modalities: their order.
        execute_probability: p_exe, probability that a batch is touched at all.

    Attributes:
        scores: (M,) of each modality on its own, where the policy has such.
        probabilities: (M,) q of each modality.
        executed: scalar, batches that were touched so far.
        active: the warm-up is over.
        acts_alone: the policy keeps something else from step to step, and so is asked for each seed of a stack.
    """

    scores: Tensor
    probabilities: Tensor
    executed: Tensor

    def __init__(self, modalities: Sequence[str], execute_probability: float) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.execute_probability = execute_probability
        self.register_buffer("scores", torch.zeros(len(self.modalities)), persistent=False)
        self.register_buffer("probabilities", torch.zeros(len(self.modalities)), persistent=False)
        self.register_buffer("executed", torch.zeros((), dtype=torch.int64), persistent=False)
        self.active = False
        self.acts_alone = False

    @property
    def theta(self) -> Tensor:
        """Scalar θ, the mean dropout probability of the modalities (Eq. 26, equal widths)."""
        return self.probabilities.mean()

    def forward(self, rows: Rows, batch: ConversationBatch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Drop and rescale.

        Args:
            rows: modality → (N, D).
            batch: the dialogues.

        Returns:
            rows of the same shapes, and the (N,) bool mask of the utterances whose dialogue keeps at least one
            modality (Eq. 25 ff.); None when nothing can have been dropped.
        """
        if not self.active:
            return dict(rows), None
        q_M1 = self.probabilities[:, None]
        execute = torch.rand((), device=batch.device) < self.execute_probability
        kept_MB = torch.rand(len(self.modalities), batch.count, device=batch.device) >= q_M1
        kept_MN = (kept_MB | ~execute)[:, batch.dialogues]
        # Where θ = 1 every modality of every dialogue is dropped and no factor can matter.
        scale = torch.where(execute & (self.theta < 1), 1 / (1 - self.theta), 1.0).detach()
        self.executed.add_(execute)
        dropped = {m: rows[m] * (kept_MN[i] * scale)[:, None] for i, m in enumerate(self.modalities)}
        return dropped, kept_MN.any(0)
