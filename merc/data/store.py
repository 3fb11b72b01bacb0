"""The feature store: a folder that holds a corpus ready for training.

========================  =====================================================================================
``features.safetensors``  modality → (N, D_m) float32, one row per utterance, dialogue after dialogue
``utterances.parquet``    the same N rows: dialogue, utterance, position (from 0), speaker (index inside the
                          dialogue), speaker_name (where known), label (name), split, text (where known)
``meta.json``             format version, corpus, dimensions, label names, splits with counts, what was missing
                          and how it was filled, SHA-256 of the sources, of the two other files and of itself
========================  =====================================================================================
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merc.data.completeness import Completeness
from merc.data.conversation import SPLITS, Conversations, Features
from merc.errors import MercError, nearest
from merc.files import atomic_folder, sha256

FORMAT = "merc feature store"
FORMAT_VERSION = 1
FEATURES = "features.safetensors"
UTTERANCES = "utterances.parquet"
META = "meta.json"


def write_store(
    path: Path,
    conversations: Conversations,
    *,
    corpus: str | None,
    sources: Mapping[str, str],
    texts: Sequence[str] | None = None,
    speaker_names: Sequence[str] | None = None,
    completeness: Completeness | None = None,
    overwrite: bool = False,
) -> None:
    """Write a feature store, whole or not at all.

    Args:
        path: the folder to create.
        conversations: the corpus; N utterances in B dialogues.
        corpus: ``meld``, ``iemocap``, or None for a corpus of one's own.
        sources: file → its SHA-256.
        texts: N utterance texts, where known.
        speaker_names: N names, where known.
        completeness: what the sources lacked.
        overwrite: replace the feature store that is there.

    Raises:
        MercError: the corpus is inconsistent (see the messages of :func:`check`), the folder exists, the disk is full
            or the folder cannot be written. Nothing is left behind then.
    """
    check(conversations)
    check_target(path, overwrite)
    with atomic_folder(path, overwrite) as folder:
        _save_features(conversations, folder / FEATURES)
        pq.write_table(_utterance_table(conversations, texts, speaker_names), folder / UTTERANCES)
        meta = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "corpus": corpus,
            "dims": conversations.dims,
            "label_names": list(conversations.label_names),
            "splits": _split_counts(conversations),
            "completeness": completeness.to_dict() if completeness else None,
            "sources": dict(sources),
            "files": {name: sha256(folder / name) for name in (FEATURES, UTTERANCES)},
        }
        meta["sha256"] = _digest(meta)
        (folder / META).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_store(path: Path, modalities: Sequence[str] | None = None, verify: bool = True) -> Conversations:
    """Read a feature store; the features are memory-mapped, not copied.

    Args:
        path: the folder.
        modalities: which to read, and in which order; None: all, as stored.
        verify: compare the files with their recorded SHA-256.

    Raises:
        MercError: there is no store, it has another format version, a file changed since it was written, or a
            modality is not in it.
    """
    meta = read_meta(path)
    wanted = list(meta["dims"] if modalities is None else modalities)
    for modality in wanted:
        if modality not in meta["dims"]:
            raise MercError(
                f"The feature store {path} has no modality '{modality}', only {', '.join(meta['dims'])}."
                f"{nearest(modality, meta['dims'])} Choose from these with data.modalities=[...], or prepare the store "
                "again with that modality."
            )
    if verify:
        _verify(path, meta)
    table = _read_utterances(path)
    dialogues = [(dialogue, len(list(run))) for dialogue, run in groupby(table["dialogue"].to_pylist())]
    starts = [0, *accumulate(length for _, length in dialogues)][:-1]
    labels = pc.index_in(table["label"], pa.array(meta["label_names"]))
    with safe_open(path / FEATURES, framework="pt") as tensors:
        features = {modality: tensors.get_tensor(modality) for modality in wanted}
    return Conversations(
        features=features,
        speakers=_numbers(table["speaker"]),
        labels=_numbers(labels),
        lengths=tuple(length for _, length in dialogues),
        dialogue_ids=tuple(dialogue for dialogue, _ in dialogues),
        utterance_ids=tuple(table["utterance"].to_pylist()),
        splits=tuple(table["split"].take(starts).to_pylist()),
        label_names=tuple(meta["label_names"]),
    )


def read_meta(path: Path) -> dict[str, Any]:
    """The description (``meta.json``) of a feature store.

    Raises:
        MercError: there is no store, it has another format version, or its description was changed.
    """
    if not (path / META).is_file():
        found = "exists but is not a feature store" if path.exists() else "does not exist"
        raise MercError(
            f"There is no feature store at {path}: it {found}. Prepare one with `python -m merc.prepare source=... "
            f"out={path}`; `python -m merc.prepare --help` lists the sources."
        )
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, META) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MercError(f"{path / META} does not describe a feature store of merc. Give the folder of one.")
    if meta.get("format_version") != FORMAT_VERSION:
        raise MercError(
            f"The feature store {path} has format version {meta.get('format_version')}; this version of merc reads "
            f"{FORMAT_VERSION}. Prepare the store again from its sources: {', '.join(meta.get('sources', {}))}."
        )
    if meta.pop("sha256", None) != _digest(meta):
        raise _damaged(path, META)
    return meta


def fingerprint(path: Path) -> str:
    """The SHA-256 of what a feature store holds; where it lies and what it was made from do not matter.

    Raises:
        MercError: as :func:`read_meta`.
    """
    return _digest(read_meta(path)["files"])


def check(conversations: Conversations) -> None:
    """Whether a corpus is fit to be stored: every rule that readers rely on.

    Raises:
        MercError: no dialogue, an empty dialogue, a duplicate id or class, a label outside the classes, an unknown
            split, a modality without one row per utterance, or a value that is NaN or infinite.
    """
    if not conversations.lengths or not conversations.features:
        raise MercError("There is nothing to store: no dialogue, or no modality. Check the paths of the sources.")
    for name, length in zip(conversations.dialogue_ids, conversations.lengths, strict=True):
        if length == 0:
            raise MercError(f"Dialogue '{name}' is empty. Remove it from the source, or add its utterances.")
    for kind, names in (("dialogue", conversations.dialogue_ids), ("utterance", conversations.utterance_ids)):
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise MercError(f"The {kind} id '{name}' occurs {count} times. Give every {kind} an id of its own.")
    repeated = [name for name, count in Counter(conversations.label_names).items() if count > 1]
    if repeated:
        raise MercError(f"The classes name '{repeated[0]}' more than once. Give every class a name of its own.")
    for name, split in zip(conversations.dialogue_ids, conversations.splits, strict=True):
        if split not in SPLITS:
            raise MercError(f"Dialogue '{name}' has the split '{split}'; it must be one of {', '.join(SPLITS)}.")
    classes = len(conversations.label_names)
    outside = ((conversations.labels < 0) | (conversations.labels >= classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise MercError(
            f"Utterance '{conversations.utterance_ids[row]}' has the label {int(conversations.labels[row])}, but the "
            f"{classes} classes have the ids 0 to {classes - 1}: {', '.join(conversations.label_names)}. "
            "Correct the label, or name the corpus whose classes these are."
        )
    features = Features.of(conversations.features)
    for modality in features:
        chunks = [(len(rows), int((~rows.isfinite()).sum())) for rows in features.chunks(modality)]
        count, bad = (sum(numbers) for numbers in zip(*chunks, strict=True))
        if count != len(conversations.utterance_ids):
            raise MercError(
                f"The modality {modality} has {count} rows for {len(conversations.utterance_ids)} utterances. "
                "There must be one for each."
            )
        if bad:
            raise MercError(
                f"The modality {modality} has {bad:,} values that are NaN or infinite. Correct them in the source, or "
                "fill them with missing=mean or missing=zero."
            )


def check_target(path: Path, overwrite: bool) -> None:
    """Whether a feature store may be written there: only another feature store is ever replaced.

    Raises:
        MercError: something is there already.
    """
    if not path.exists():
        return
    if not all((path / name).is_file() for name in (META, FEATURES)):
        raise MercError(f"{path} exists and is not a feature store, so it is not replaced. Choose another out=...")
    if not overwrite:
        raise MercError(f"The feature store {path} exists. Choose another out=..., or add overwrite=true.")


def describe(path: Path) -> RenderableType:
    """What is inside a feature store, for the terminal: splits, classes, lengths, speakers, gaps and sources.

    Raises:
        MercError: as :func:`read_store`.
    """
    meta = read_meta(path)
    store = read_store(path)
    completeness = meta["completeness"]
    return Group(
        f"Feature store {path}, format version {FORMAT_VERSION}, corpus {meta['corpus'] or 'custom'}",
        "Modalities: " + ", ".join(f"{modality} {dim}-d" for modality, dim in meta["dims"].items()),
        f"Further columns: {', '.join(_optional_columns(path)) or 'none'}",
        _split_table(store),
        describe_classes(store),
        *([Completeness.from_dict(completeness).render()] if completeness else []),
        *(f"Source {file} sha256 {digest}" for file, digest in meta["sources"].items()),
    )


def describe_classes(conversations: Conversations) -> RenderableType:
    """The utterances of every class and split, and which classes training has none of, for the terminal."""
    parts = _parts(conversations)
    known = set(parts["train"].labels.tolist()) if "train" in parts else range(len(conversations.label_names))
    unseen = [name for label, name in enumerate(conversations.label_names) if label not in known]
    table = _class_table(parts, conversations.label_names)
    return Group(table, *([f"No training utterance: {', '.join(unseen)}"] if unseen else []))


def _save_features(conversations: Conversations, file: Path) -> None:
    tensors = {modality: rows.float().contiguous() for modality, rows in conversations.features.items()}
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _utterance_table(
    conversations: Conversations, texts: Sequence[str] | None, speaker_names: Sequence[str] | None
) -> pa.Table:
    def per_utterance(values: Sequence[str]) -> list[str]:
        return [value for value, n in zip(values, conversations.lengths, strict=True) for _ in range(n)]

    columns: dict[str, Any] = {
        "dialogue": per_utterance(conversations.dialogue_ids),
        "utterance": list(conversations.utterance_ids),
        "position": pa.array([i for n in conversations.lengths for i in range(n)], pa.int32()),
        "speaker": pa.array(conversations.speakers.tolist(), pa.int32()),
        "speaker_name": speaker_names,
        "label": [conversations.label_names[label] for label in conversations.labels.tolist()],
        "split": per_utterance(conversations.splits),
        "text": texts,
    }
    return pa.table({name: values for name, values in columns.items() if values is not None})


def _split_counts(conversations: Conversations) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        lengths = [n for n, s in zip(conversations.lengths, conversations.splits, strict=True) if s == split]
        if lengths:
            counts[split] = {"dialogues": len(lengths), "utterances": sum(lengths)}
    return counts


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, name: str) -> MercError:
    return MercError(
        f"{path / name} is damaged: it differs from what was written (SHA-256). Prepare the store again, with "
        "overwrite=true, or copy it again from where it is whole."
    )


def _verify(path: Path, meta: Mapping[str, Any]) -> None:
    for name, digest in meta["files"].items():
        if not (path / name).is_file():
            raise MercError(f"The feature store {path} lacks its file {name}. Prepare the store again.")
        if sha256(path / name) != digest:
            raise _damaged(path, name)


def _read_utterances(path: Path) -> pa.Table:
    return pq.read_table(path / UTTERANCES, columns=["dialogue", "utterance", "speaker", "label", "split"])


def _numbers(column: pa.ChunkedArray) -> Tensor:
    """(N,) int64."""
    return torch.tensor(column.to_numpy(), dtype=torch.int64)


def _optional_columns(path: Path) -> list[str]:
    return [name for name in ("speaker_name", "text") if name in pq.read_schema(path / UTTERANCES).names]


def _parts(store: Conversations) -> dict[str, Conversations]:
    """split → its dialogues, for the splits that there are."""
    members = {split: [i for i, s in enumerate(store.splits) if s == split] for split in SPLITS}
    return {split: store.select(dialogues) for split, dialogues in members.items() if dialogues}


def _split_table(store: Conversations) -> Table:
    table = Table("split", title="Dialogues (length in utterances; min / median / mean / max)", title_justify="left")
    for heading in ("dialogues", "utterances", "length", "speakers per dialogue"):
        table.add_column(heading, justify="right")
    for split, part in _parts(store).items():
        speakers = [len(set(rows.tolist())) for rows in part.speakers.split(part.lengths)]
        table.add_row(
            split, f"{len(part.lengths):,}", f"{sum(part.lengths):,}", _spread(part.lengths), _spread(speakers)
        )
    return table


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)} / {median(values):g} / {mean(values):.1f} / {max(values)}"


def _class_table(parts: Mapping[str, Conversations], label_names: Sequence[str]) -> Table:
    table = Table("class", title="Utterances per class", title_justify="left")
    for split in parts:
        table.add_column(split, justify="right")
    counts = {split: torch.bincount(part.labels, minlength=len(label_names)) for split, part in parts.items()}
    for label, name in enumerate(label_names):
        shares = (f"{int(n[label]):,} ({100 * int(n[label]) / int(n.sum()):.1f} %)" for n in counts.values())
        table.add_row(name, *shares)
    return table
