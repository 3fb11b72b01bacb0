import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from merc.data.completeness import Completeness, Gap, Surplus
from merc.data.conversation import SPLITS, Conversations
from merc.data.store import META, describe, read_meta, read_store, write_store
from merc.errors import MercError


def corpus(lengths: tuple[int, ...] = (2, 1, 3), seed: int = 0) -> Conversations:
    random = np.random.default_rng(seed)
    n = sum(lengths)
    return Conversations(
        features={
            "text": torch.from_numpy(random.normal(size=(n, 5)).astype(np.float32)),
            "audio": torch.from_numpy(random.normal(size=(n, 2)).astype(np.float32)),
        },
        speakers=torch.from_numpy(random.integers(0, 3, n)),
        labels=torch.from_numpy(random.integers(0, 4, n)),
        lengths=lengths,
        dialogue_ids=tuple(f"d{i}" for i in range(len(lengths))),
        utterance_ids=tuple(f"u{i}" for i in range(n)),
        splits=tuple(SPLITS[i % 3] for i in range(len(lengths))),
        label_names=("joy", "anger", "fear", "neutral"),
    )


def write(path: Path, conversations: Conversations, **options: object) -> None:
    write_store(path, conversations, corpus=None, sources={"a.csv": "00"}, **options)  # type: ignore[arg-type]


def assert_equal(a: Conversations, b: Conversations) -> None:
    assert list(a.features) == list(b.features)
    for modality in a.features:
        assert torch.equal(a.features[modality], b.features[modality])
    assert torch.equal(a.speakers, b.speakers)
    assert torch.equal(a.labels, b.labels)
    for name in ("lengths", "dialogue_ids", "utterance_ids", "splits", "label_names"):
        assert getattr(a, name) == getattr(b, name)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, lengths: list[int], seed: int) -> None:
    conversations = corpus(tuple(lengths), seed)
    write(tmp_path / "store", conversations, overwrite=True)
    assert_equal(read_store(tmp_path / "store"), conversations)


def test_tensor_types(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    store = read_store(tmp_path / "s")
    assert {rows.dtype for rows in store.features.values()} == {torch.float32}
    assert store.labels.dtype == store.speakers.dtype == torch.int64


def test_features_are_memory_mapped(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    store = read_store(tmp_path / "s")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    address = store.features["text"].data_ptr()
    line = next(
        line
        for line in maps.read_text().splitlines()
        if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
    )
    assert line.endswith("features.safetensors")


def test_modalities_in_the_order_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    assert list(read_store(tmp_path / "s", ["audio"]).features) == ["audio"]
    assert list(read_store(tmp_path / "s", ["audio", "text"]).features) == ["audio", "text"]
    with pytest.raises(MercError, match=r"no modality 'adio', only text, audio\. Did you mean 'audio'"):
        read_store(tmp_path / "s", ["adio"])


def test_columns_of_the_utterance_table(tmp_path: Path) -> None:
    names, texts = tuple("ABCDEF"), tuple("uvwxyz")
    conversations = corpus()
    write(tmp_path / "s", conversations, speaker_names=names, texts=texts)
    rows = pq.read_table(tmp_path / "s" / "utterances.parquet").to_pydict()
    assert rows == {
        "dialogue": ["d0", "d0", "d1", "d2", "d2", "d2"],
        "utterance": list(conversations.utterance_ids),
        "position": [0, 1, 0, 0, 1, 2],
        "speaker": conversations.speakers.tolist(),
        "speaker_name": list(names),
        "label": [conversations.label_names[i] for i in conversations.labels.tolist()],
        "split": ["train", "train", "validation", "test", "test", "test"],
        "text": list(texts),
    }
    assert read_meta(tmp_path / "s")["splits"]["test"] == {"dialogues": 1, "utterances": 3}


@pytest.mark.parametrize("name", ["features.safetensors", "utterances.parquet", "meta.json"])
def test_a_flipped_byte_is_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s", corpus())
    file = tmp_path / "s" / name
    content = bytearray(file.read_bytes())
    place = content.index(b"neutral") if name == "meta.json" else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(MercError, match=f"{name} is damaged"):
        read_store(tmp_path / "s")


def test_without_verification_only_the_description_is_checked(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    file = tmp_path / "s" / "features.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(read_store(tmp_path / "s", verify=False).labels) == 6


def test_a_lost_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    (tmp_path / "s" / "utterances.parquet").unlink()
    with pytest.raises(MercError, match=r"lacks its file utterances\.parquet"):
        read_store(tmp_path / "s")


def test_another_format_version(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    meta = json.loads((tmp_path / "s" / META).read_text())
    (tmp_path / "s" / META).write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(MercError, match=r"has format version 99; this version of merc reads 1\. .*sources: a\.csv"):
        read_store(tmp_path / "s")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(MercError, match=r"does not exist.*python -m merc\.prepare source="):
        read_store(tmp_path / "nowhere")
    with pytest.raises(MercError, match="exists but is not a feature store"):
        read_store(tmp_path)
    (tmp_path / META).write_text("[]")
    with pytest.raises(MercError, match="does not describe a feature store"):
        read_store(tmp_path)


GOOD = corpus()
BAD = {
    "NaN": (
        replace(GOOD, features={"text": GOOD.features["text"].clone().index_fill(1, torch.tensor([2]), float("nan"))}),
        "modality text has 6 values that are NaN",
    ),
    "infinite": (replace(GOOD, features={"text": torch.full((6, 1), float("inf"))}), "6 values that are NaN or inf"),
    "label above": (replace(GOOD, labels=torch.tensor([0, 1, 4, 0, 0, 0])), "'u2' has the label 4.*ids 0 to 3"),
    "label below": (replace(GOOD, labels=torch.tensor([0, -1, 0, 0, 0, 0])), "'u1' has the label -1"),
    "empty dialogue": (replace(GOOD, lengths=(2, 0, 4)), "Dialogue 'd1' is empty"),
    "no dialogue": (replace(GOOD, lengths=()), "nothing to store"),
    "no modality": (replace(GOOD, features={}), "nothing to store"),
    "rows": (replace(GOOD, features={"text": torch.zeros(5, 2)}), "text has 5 rows for 6 utterances"),
    "utterance id": (replace(GOOD, utterance_ids=("a", "b", "c", "a", "d", "e")), "utterance id 'a' occurs 2 times"),
    "dialogue id": (replace(GOOD, dialogue_ids=("a", "b", "a")), "dialogue id 'a' occurs 2 times"),
    "class": (replace(GOOD, label_names=("joy", "anger", "joy", "fear")), "classes name 'joy' more than once"),
    "split": (replace(GOOD, splits=("train", "dev", "test")), "'d1' has the split 'dev'"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_inconsistent_corpus_is_not_written(tmp_path: Path, case: str) -> None:
    conversations, message = BAD[case]
    with pytest.raises(MercError, match=message):
        write(tmp_path / "s", conversations)
    assert not list(tmp_path.iterdir())


def test_an_existing_store_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "s", corpus())
    with pytest.raises(MercError, match="add overwrite=true"):
        write(tmp_path / "s", corpus((1,)))
    assert len(read_store(tmp_path / "s").labels) == 6
    write(tmp_path / "s", corpus((1,)), overwrite=True)
    assert len(read_store(tmp_path / "s").labels) == 1


def test_another_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MercError, match="not a feature store, so it is not replaced"):
        write(tmp_path, corpus(), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MercError, match="Cannot write"):
        write(tmp_path / "file" / "s", corpus())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("merc.data.store.pq.write_table", full)
    with pytest.raises(MercError, match="No space left on device"):
        write(tmp_path / "s", corpus())
    assert not list(tmp_path.iterdir())


def test_description(tmp_path: Path) -> None:
    gap = Gap("text", "train", 2, 1, ("u0",), 1, 3, {"pitch": 3}, ("u1",))
    completeness = Completeness("mean", (gap,), (Surplus("audio", "a.csv", 12, ("x", "y")),))
    write(tmp_path / "s", corpus((3, 1, 2, 2)), completeness=completeness)
    console = Console(width=100, record=True, markup=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(describe(tmp_path / "s"), soft_wrap=True)
    words = " ".join(console.export_text().replace("│", " ").split())
    for expected in (
        "text 5-d, audio 2-d",
        "train 2 5 2 / 2.5 / 2.5 / 3",
        "test 1 2 2 / 2 / 2.0 / 2",
        "text train 2 1 1 3",
        "No row, text, train: u0",
        "NaN, text, train: u1 NaN, text, train, by column: pitch 3",
        "12 rows of a.csv that belong to no utterance of any split: x, y …",
        "a.csv sha256 00",
    ):
        assert expected in words
    labels = read_store(tmp_path / "s").labels
    joys = int((labels[:3] == 0).sum() + (labels[6:] == 0).sum())
    assert f"joy {joys} ({100 * joys / 5:.1f} %)" in words


def test_gaps_recorded_by_an_earlier_version_are_read() -> None:
    gap = Gap("text", "train", 2, 0, (), 1, 3, {"pitch": 3}, ("u1",))
    recorded = json.loads(json.dumps(Completeness("mean", (gap,), ()).to_dict()))
    assert Completeness.from_dict(recorded).gaps == (gap,)
    del recorded["gaps"][0]["nan_examples"]
    assert Completeness.from_dict(recorded).gaps == (replace(gap, nan_examples=()),)


# How much memory is the process' own, not the system's to take back, before and behind a whole pass over the data.
OWN_MEMORY = """
import sys
from merc.data.datamodule import CustomDataModule

def own():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

settings = {"standardize": "zscore", "validation_fraction": 0.2, "evaluation_batch_size": 64}  # a batch is in memory
data = CustomDataModule(sys.argv[1], modalities=["text"], **settings)
before = own()
data.setup()
for loader in (data.train_dataloader(), *data.val_dataloader()):
    for batch in loader:
        assert abs(batch.features["text"].mean()) < 1
print(own() - before)
"""


def test_memory_does_not_grow_with_the_features(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    own, stored = {}, {}
    for dialogues in (300, 1200):
        features = torch.randn(10 * dialogues, 4000)
        write(tmp_path / str(dialogues), replace(corpus((10,) * dialogues), features={"text": features}))
        command = [sys.executable, "-c", OWN_MEMORY, str(tmp_path / str(dialogues))]
        # What is freed goes back to the system at once: otherwise the sum says what the allocator happens to keep.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        own[dialogues], stored[dialogues] = int(done.stdout), features.numel() * 4 / 1024
    assert own[1200] - own[300] < (stored[1200] - stored[300]) / 3, f"KiB: {own} for features of {stored}"
