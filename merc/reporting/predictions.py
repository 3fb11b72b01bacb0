"""What a model says of every utterance, as a table."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from merc.data.conversation import Conversations
from merc.files import atomic_file
from merc.models.prediction import Prediction


def predict(
    module: L.LightningModule, loader: Iterable[Any], precision: AbstractContextManager[Any] | None = None
) -> Prediction:
    """The class scores of all N utterances of a loader, in its order, on the host.

    Args:
        module: its ``predict_step`` yields a :class:`Prediction` per batch.
        loader: batches of conversations.
        precision: the context in which the model computes, such as autocast.
    """
    module.eval()
    with torch.inference_mode(), precision or nullcontext():
        parts = [module.predict_step(batch.to(module.device)) for batch in loader]
    return Prediction(
        fused=_host([part.fused for part in parts]),
        unimodal={modality: _host([part.unimodal[modality] for part in parts]) for modality in parts[0].unimodal},
    )


def _host(logits: list[Tensor]) -> Tensor:
    return torch.cat(logits).float().cpu()


def write_predictions(path: Path, splits: Mapping[str, tuple[Conversations, Prediction]]) -> None:
    """Write the predictions of some splits as Parquet, one row per utterance.

    Columns: ``split``, ``dialogue``, ``utterance``, ``speaker`` (index inside the dialogue), ``label``; ``prediction``
    and ``probability_<class>`` of the fused logits; ``<modality>_prediction`` and ``<modality>_probability_<class>``
    of each modality's own logits.

    Raises:
        MercError: the file cannot be written.
    """
    table = pa.concat_tables([_table(split, *content) for split, content in splits.items()])
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _table(split: str, conversations: Conversations, prediction: Prediction) -> pa.Table:
    names = conversations.label_names
    dialogues = [
        dialogue
        for dialogue, length in zip(conversations.dialogue_ids, conversations.lengths, strict=True)
        for _ in range(length)
    ]
    columns: dict[str, Any] = {
        "split": [split] * len(dialogues),
        "dialogue": dialogues,
        "utterance": list(conversations.utterance_ids),
        "speaker": conversations.speakers.numpy(),
        "label": [names[label] for label in conversations.labels.tolist()],
        **_columns("", prediction.fused, names),
    }
    for modality, logits in prediction.unimodal.items():
        columns |= _columns(f"{modality}_", logits, names)
    return pa.table(columns)


def _columns(prefix: str, logits_NC: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    probabilities = logits_NC.softmax(1).numpy()
    return {
        f"{prefix}prediction": [names[index] for index in logits_NC.argmax(1).tolist()],
        **{f"{prefix}probability_{name}": probabilities[:, index] for index, name in enumerate(names)},
    }
