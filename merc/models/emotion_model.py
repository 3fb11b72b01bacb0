"""The model: seven stages in a row, each exchangeable from the configuration."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.linear import Linear, compiled_for_each_shape
from merc.models.prediction import Prediction
from merc.models.stages import PerModality, Rows

FEWEST = 128
"""Rows of a batch below which its kernels are not worth a thought."""


class SpeakerEmbedding(nn.Module):
    """A vector per speaker of a dialogue (AMB-DSGDN Sec. 4.2), shared by all modalities.

    Args:
        speaker_slots: most speakers of a dialogue.
        hidden_dim: width of the vectors.
    """

    def __init__(self, speaker_slots: int, hidden_dim: int) -> None:
        super().__init__()
        # One row more than speakers, as published: the row of padding, zero and never read by packed rows.
        self.table = nn.Embedding(speaker_slots + 1, hidden_dim, padding_idx=speaker_slots)

    def forward(self, speakers_N: Tensor) -> Tensor:
        """(N,) speaker indices → (N, D)."""
        vectors_ND: Tensor = self.table(speakers_N)
        return vectors_ND


class EmotionModel(nn.Module):
    """project → denoise → relate → gate → balance → fuse → classify.

    Args:
        projection: modality features (N, D_m) → (N, D), one linear map per modality (AMB-DSGDN Eq. 1).
        speaker_embedding: speaker vectors for the denoisers; None when no modality has a denoiser.
        denoiser: per modality, called with rows, speaker vectors and batch.
        graph: called with all rows and the batch.
        gate: per modality, called with rows.
        balancing: called with all rows and the batch; returns rows and the (N,) bool mask of utterances that keep at
            least one modality. None: nothing is dropped.
        fusion: called with all rows; None: the modalities meet in the classifier only.
        classifier: called with all rows; returns a :class:`Prediction`.
        pad_dialogues: run on dialogues padded to the longest of the batch, rows of padding taking part wherever a stage
            does not mask them. Predictions then depend on the other dialogues of the batch; only to reproduce ReDiFu
            as released.
        causal: no prediction depends on a later utterance.
    """

    def __init__(
        self,
        *,
        projection: PerModality,
        speaker_embedding: SpeakerEmbedding | None,
        denoiser: PerModality,
        graph: nn.Module,
        gate: PerModality,
        balancing: nn.Module | None,
        fusion: nn.Module | None,
        classifier: nn.Module,
        pad_dialogues: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.speaker_embedding = speaker_embedding
        self.denoiser = denoiser
        self.graph = graph
        self.gate = gate
        self.balancing = balancing
        self.fusion = fusion
        self.classifier = classifier
        self.pad_dialogues = pad_dialogues
        self.causal = causal

    def prepared(self, batch: ConversationBatch) -> ConversationBatch:
        """A batch as the stages take it: causal if the model is, with rows of padding if the model depends on them."""
        batch = replace(batch, causal=self.causal)
        return batch.with_padding(speaker=self.padding_speaker) if self.pad_dialogues else batch

    def encode(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """The stages before balancing, of a prepared batch: modality → (N, D)."""
        rows: Rows = self.projection(batch.features)
        if self.speaker_embedding is not None:
            rows = self.denoiser(rows, self.speaker_embedding(batch.speakers), batch)
        rows = self.graph(rows, batch)
        encoded: dict[str, Tensor] = self.gate(rows)
        return encoded

    def classify(self, rows: Rows, batch: ConversationBatch) -> Prediction:
        """The stages behind balancing, of a prepared batch."""
        prediction: Prediction = self.classifier(rows if self.fusion is None else self.fusion(rows, batch))
        return prediction

    def forward(self, batch: ConversationBatch) -> Prediction:
        """Class scores of every utterance of the batch."""
        prepared = self.prepared(batch)
        if self.pad_dialogues:
            return self._run(prepared).rows(batch.places)
        if not (self.training and compiled_for_each_shape(batch.device)):  # evaluated batches come again as they are
            return self._run(prepared)
        filled = prepared.with_filler(missing_rows(batch.rows))
        return self._run(filled).rows(filled.utterances)

    @property
    def padding_speaker(self) -> int:
        """Index of the zero row of the speaker table."""
        return 0 if self.speaker_embedding is None else int(self.speaker_embedding.table.padding_idx or 0)

    def _run(self, batch: ConversationBatch) -> Prediction:
        rows = self.encode(batch)
        if self.balancing is None or not self.training:
            return self.classify(rows, batch)
        rows, kept_N = self.balancing(rows, batch)
        return replace(self.classify(rows, batch), kept=kept_N)


def missing_rows(rows: int) -> int:
    """How many rows to add so that batches often have the same number of rows; at most 6 %, none to small ones."""
    step = 2 ** (rows.bit_length() - 5) if rows >= FEWEST else 1
    return -rows % step


def linear_projection(dims: dict[str, int], hidden_dim: int) -> PerModality:
    """Linear maps from each modality's D_m features to D (AMB-DSGDN Eq. 1)."""
    return PerModality({modality: Linear(dim, hidden_dim) for modality, dim in dims.items()})


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, those without a gradient included."""
    return sum(torch.numel(parameter) for parameter in model.parameters())
