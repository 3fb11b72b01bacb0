"""How many dialogues and utterances a run was trained and evaluated on."""

from collections.abc import Mapping
from typing import Any

import torch

from merc.data.conversation import Conversations


def describe_corpus(parts: Mapping[str, Conversations]) -> dict[str, dict[str, Any]]:
    """Split → dialogues, utterances and utterances of each class: the content of corpus.json.

    Args:
        parts: split → its conversations, as a data module divides them.
    """
    return {split: _counts(part) for split, part in parts.items()}


def _counts(part: Conversations) -> dict[str, Any]:
    support = torch.bincount(part.labels, minlength=len(part.label_names)).tolist()
    by_class = dict(zip(part.label_names, support, strict=True))
    return {"dialogues": len(part.lengths), "utterances": len(part.labels), "classes": by_class}
