"""What a run was trained and evaluated on, in numbers: the content of corpus.json."""

from typing import Any

import torch

from merc.data.conversation import Conversations
from merc.data.datamodule import ConversationDataModule

TOGETHER = "train+validation"
"""Training and validation, as papers count them."""


def describe_corpus(data: ConversationDataModule) -> dict[str, dict[str, Any]]:
    """Split → its ``dialogues``, ``utterances``, most ``speakers`` of a dialogue and ``classes`` (name → utterances).

    Training and validation stand together as well; where training is on both, only so.
    """
    parts = data.parts
    if "validation" not in parts:
        return {TOGETHER: _count(parts["train"]), "test": _count(parts["test"])}
    return {
        "train": _count(parts["train"]),
        "validation": _count(parts["validation"]),
        TOGETHER: _count(parts["train"], parts["validation"]),
        "test": _count(parts["test"]),
    }


def _count(*parts: Conversations) -> dict[str, Any]:
    names = parts[0].label_names
    classes = torch.bincount(torch.cat([part.labels for part in parts]), minlength=len(names))
    return {
        "dialogues": sum(len(part.lengths) for part in parts),
        "utterances": sum(len(part.labels) for part in parts),
        "speakers": max(_most_speakers(part) for part in parts),
        "classes": dict(zip(names, classes.tolist(), strict=True)),
    }


def _most_speakers(part: Conversations) -> int:
    return max(len(speakers.unique()) for speakers in torch.split(part.speakers, list(part.lengths)))
