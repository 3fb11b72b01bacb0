"""What a run was trained and evaluated on: corpus.json."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from merc.data.conversation import Conversations
from merc.data.datamodule import ConversationDataModule
from merc.data.store import fingerprint
from merc.errors import MercError
from merc.files import write_json
from merc.reporting.run_folder import RunFolder

TOGETHER = "train+validation"
"""Training and validation, as papers count them."""


def record_corpus(folder: RunFolder, data: ConversationDataModule) -> None:
    """Write corpus.json; of a run that goes on, see that it goes on with the same data.

    Args:
        folder: of the run, claimed.
        data: set up.

    Raises:
        MercError: the run began with other data.
    """
    content = {"fingerprint": data.info.fingerprint, "splits": describe_corpus(data)}
    if folder.corpus.exists() and json.loads(folder.corpus.read_text(encoding="utf-8")) != content:
        raise _other_data(folder)
    write_json(folder.corpus, content)


def refuse_other_features(folder: RunFolder) -> None:
    """Refuse a run whose feature store was replaced since: its scores are not of what is there now.

    Raises:
        MercError: it was.
    """
    if not (folder.status.exists() and folder.corpus.exists()):
        return
    there = json.loads(folder.corpus.read_text(encoding="utf-8")).get("fingerprint")
    store = OmegaConf.select(OmegaConf.load(folder.config), "data.store")
    if there is not None and Path(store).exists() and there != fingerprint(Path(store)):
        raise _other_data(folder)


def _other_data(folder: RunFolder) -> MercError:
    return MercError(
        f"The run in {folder.path} was trained on other data than there are now: its feature store was replaced. "
        "Add overwrite=true to train it again, or prepare the new features in a folder of their own and name it with "
        "data.store=…."
    )


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
