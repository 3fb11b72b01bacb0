"""What every source yields, and how its gaps are counted and filled."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from merc.data.completeness import EXAMPLES, Completeness, Gap, Surplus
from merc.data.conversation import SPLITS, Conversations
from merc.errors import MercError, nearest

POLICIES = ("error", "mean", "zero")
"""What may be done about missing features."""


@dataclass(frozen=True)
class Extract:
    """A corpus as its source holds it, gaps included.

    Attributes:
        conversations: N utterances; features that the source lacks are NaN.
        absent: modality → (N,) bool, True where the source has no row for the utterance.
        columns: modality → names of its D_m features; only where the source names them.
        surplus: rows of the source that belong to no utterance.
        files: file → its SHA-256.
        speaker_names: N names, where known.
        texts: N utterance texts, where known.
    """

    conversations: Conversations
    absent: Mapping[str, Tensor]
    columns: Mapping[str, tuple[str, ...]]
    surplus: tuple[Surplus, ...]
    files: Mapping[str, str]
    speaker_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None

    @property
    def split_rows(self) -> dict[str, Tensor]:
        """split → (N',) int64 rows of its utterances, for the splits that there are."""
        members = {s: [i for i, t in enumerate(self.conversations.splits) if t == s] for s in SPLITS}
        return {split: self.conversations.rows(dialogues) for split, dialogues in members.items() if dialogues}


class Source(Protocol):
    """Where conversations come from: an object that reads its files into an :class:`Extract`."""

    def read(self) -> Extract:
        """Read everything; raises MercError for whatever is wrong with the files."""


def label_id(name: str, label_names: tuple[str, ...], where: str) -> int:
    """The id of a class name, upper or lower case.

    Raises:
        MercError: no such class.
    """
    known = {label.lower(): index for index, label in enumerate(label_names)}
    wanted = name.strip().lower()
    if wanted not in known:
        raise MercError(
            f"{where} has the label '{name}', which is none of the classes {', '.join(label_names)}."
            f"{nearest(wanted, known)} Correct the label, or give your own classes with labels=[...] (source=tables)."
        )
    return known[wanted]


def check_speakers(extract: Extract, slots: int, corpus: str) -> None:
    """Whether every dialogue fits the speaker slots of its corpus.

    Raises:
        MercError: a dialogue has more speakers.
    """
    conversations = extract.conversations
    for name, rows in zip(
        conversations.dialogue_ids, conversations.speakers.split(list(conversations.lengths)), strict=True
    ):
        if int(rows.max()) >= slots:
            raise MercError(
                f"Dialogue '{name}' has {int(rows.max()) + 1} speakers, but {corpus} has {slots} speaker slots. "
                "Correct the speakers, or prepare the data as a corpus of your own: corpus=custom."
            )


def count_gaps(extract: Extract, policy: str) -> Completeness:
    """Count what is missing, per modality and split."""
    gaps = tuple(
        _gap(extract, modality, split, rows)
        for modality in extract.conversations.features
        for split, rows in extract.split_rows.items()
    )
    return Completeness(policy, gaps, extract.surplus)


def _gap(extract: Extract, modality: str, split: str, rows: Tensor) -> Gap:
    bad = ~torch.isfinite(extract.conversations.features[modality][rows])
    absent = extract.absent[modality][rows]
    bad[absent] = False
    per_column = bad.sum(0).tolist()
    incomplete = bad.any(1)
    absent_ids, nan_ids = (
        tuple(extract.conversations.utterance_ids[row] for row in rows[such][:EXAMPLES].tolist())
        for such in (absent, incomplete)
    )
    return Gap(
        modality=modality,
        split=split,
        utterances=len(rows),
        absent_rows=int(absent.sum()),
        absent_examples=absent_ids,
        rows_with_nan=int(incomplete.sum()),
        nan_values=int(bad.sum()),
        nan_columns={
            name: count for name, count in zip(extract.columns.get(modality, ()), per_column, strict=False) if count
        },
        nan_examples=nan_ids,
    )


def fill_gaps(extract: Extract, completeness: Completeness) -> Conversations:
    """The conversations without NaN, filled by ``completeness.policy``.

    ``mean`` is the mean of a feature over the values that the training split has; ``zero`` is 0.

    Raises:
        MercError: something is missing and the policy is ``error``, or it is ``mean`` and the training split has no
            value of that feature.
    """
    conversations = extract.conversations
    if completeness.complete:
        return conversations
    if completeness.policy == "error":
        raise MercError(
            f"Features are missing: {_summary(completeness)}. Correct the source, or choose how to fill them: "
            "missing=mean (of the training split) or missing=zero."
        )
    features = {}
    for modality, rows in conversations.features.items():
        mean = completeness.policy == "mean" and not bool(torch.isfinite(rows).all())
        filler = _training_means(extract, modality) if mean else rows.new_zeros(rows.shape[1])
        features[modality] = torch.where(torch.isfinite(rows), rows, filler)
    return replace(conversations, features=features)


def _summary(completeness: Completeness) -> str:
    parts = []
    for gap in completeness.gaps:
        if not gap.complete:
            parts.append(
                f"{gap.modality}, {gap.split}: {gap.absent_rows:,} of {gap.utterances:,} utterances without a row, "
                f"{gap.nan_values:,} NaN or infinite values in {gap.rows_with_nan:,} others"
            )
    return "; ".join(parts)


def _training_means(extract: Extract, modality: str) -> Tensor:
    """(D_m,) mean over the finite values of the training split."""
    rows = extract.conversations.features[modality][extract.split_rows.get("train", torch.empty(0, dtype=torch.int64))]
    finite = torch.isfinite(rows)
    counts = finite.sum(0)
    if bool((counts == 0).any()):
        raise MercError(
            f"missing=mean needs values of the training split, but {int((counts == 0).sum())} of the {rows.shape[1]} "
            f"features of the modality {modality} have none there. Use missing=zero, or leave that feature out."
        )
    sums = torch.where(finite, rows, rows.new_zeros(())).double().sum(0)
    return (sums / counts).float()
