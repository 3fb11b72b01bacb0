import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from merc.config import compose
from merc.data.store import read_meta, read_store
from merc.errors import MercError
from merc.prepare import inspect, prepare

REAL_MELD = Path(__file__).parents[1] / ".." / "shared" / "data" / "meld"


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides that prepare a small corpus of one's own."""
    lines = ["dialogue,position,utterance,speaker,label,split"]
    for d, split in enumerate(("train", "dev", "test")):
        lines += [f"d{d},{i},d{d}_{i},s{i % 2},{'xyz'[i]},{split}" for i in range(3)]
    (tmp_path / "u.csv").write_text("\n".join(lines))
    ids = [f"d{d}_{i}" for d in range(3) for i in range(3)]

    def overrides(*more: str, missing: int = 0) -> list[str]:
        np.savez(tmp_path / "f.npz", ids=np.array(ids[missing:]), features=np.ones((9 - missing, 4)))
        settings = [f"utterances={tmp_path / 'u.csv'}", f"features.text={tmp_path / 'f.npz'}", f"out={tmp_path / 's'}"]
        return ["source=tables", *settings, *more]

    return overrides


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "merc.prepare", *arguments], capture_output=True, text=True, check=False
    )


def test_a_corpus_of_ones_own(tmp_path: Path, tables: Callable[..., list[str]]) -> None:
    assert prepare(compose(tables(), "prepare")) == tmp_path / "s"
    store = read_store(tmp_path / "s")
    assert (store.lengths, store.dims, store.label_names) == ((3, 3, 3), {"text": 4}, ("x", "y", "z"))
    meta = read_meta(tmp_path / "s")
    assert set(meta["sources"]) == {str(tmp_path / "u.csv"), str(tmp_path / "f.npz")}
    assert meta["corpus"] is None


def test_what_is_missing_is_printed_and_recorded(
    tmp_path: Path, tables: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MercError, match="text, train: 2 of 3 utterances without a row"):
        prepare(compose(tables(missing=2), "prepare"))
    assert "No row, text, train: d0_0, d0_1" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()
    prepare(compose(tables("missing=zero", missing=2), "prepare"))
    assert read_store(tmp_path / "s").features["text"][:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    capsys.readouterr()
    inspect(tmp_path / "s")
    assert "No row, text, train: d0_0, d0_1" in capsys.readouterr().out


def test_values_that_are_no_numbers_are_named(
    tmp_path: Path, tables: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = tables("missing=zero", f"features.audio={tmp_path / 'f.csv'}")
    rows = [f"d{d}_{i},1,{'nan' if (d, i) == (0, 1) else 2}" for d in range(3) for i in range(3)]
    (tmp_path / "f.csv").write_text("\n".join(["id,a1,a2", *rows]))
    prepare(compose(overrides, "prepare"))
    printed = capsys.readouterr().out
    assert "NaN, audio, train: d0_1\n" in printed
    assert "NaN, audio, train, by column: a2 1\n" in printed


def test_rows_left_over_alone_are_no_table_of_zeros(
    tmp_path: Path, tables: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = tables()
    np.savez(tmp_path / "f.npz", ids=[f"d{d}_{i}" for d in range(4) for i in range(3)], features=np.ones((12, 4)))
    prepare(compose(overrides, "prepare"))
    printed = capsys.readouterr().out
    assert "Not used: 3 rows of" in printed
    assert "Missing features" not in printed


def test_the_classes_are_printed(
    tmp_path: Path, tables: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = tables()
    prepare(compose(overrides, "prepare"))
    assert "No training utterance" not in capsys.readouterr().out
    text = (tmp_path / "u.csv").read_text()
    (tmp_path / "u.csv").write_text(text.replace("s0,x,test", "s0,confused,test"))
    prepare(compose([*overrides, "overwrite=true"], "prepare"))
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "x 1 (33.3 %) 1 (33.3 %) 0 (0.0 %)" in printed
    assert "confused 0 (0.0 %) 0 (0.0 %) 1 (33.3 %)" in printed
    assert "No training utterance: confused Feature store" in printed


def test_an_existing_store_is_noticed_before_the_work(tmp_path: Path, tables: Callable[..., list[str]]) -> None:
    prepare(compose(tables(), "prepare"))
    (tmp_path / "u.csv").unlink()
    with pytest.raises(MercError, match="add overwrite=true"):
        prepare(compose(tables(), "prepare"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["missing=men"], "missing=men is none of error, mean, zero. Did you mean 'mean'"),
        (["corpus=meld"], "label 'x', which is none of the classes neutral"),
        (["columns.label=emotion"], "no column 'emotion'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    tmp_path: Path, tables: Callable[..., list[str]], overrides: list[str], message: str
) -> None:
    with pytest.raises(MercError, match=message):
        prepare(compose(tables(*overrides), "prepare"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "u.csv"]


def test_a_source_must_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(MercError, match="source=pickle, source=meld_csv or source=tables"):
        prepare(compose([f"out={tmp_path / 's'}"], "prepare"))


def test_more_speakers_than_the_corpus_has(tmp_path: Path, tables: Callable[..., list[str]]) -> None:
    overrides = tables("corpus=iemocap", "labels=[x,y,z]")
    text = (tmp_path / "u.csv").read_text()
    (tmp_path / "u.csv").write_text(text.replace("d0_2,s0", "d0_2,s2"))
    with pytest.raises(MercError, match="'d0' has 3 speakers, but iemocap has 2 speaker slots"):
        prepare(compose(overrides, "prepare"))


def test_the_command(tmp_path: Path, tables: Callable[..., list[str]]) -> None:
    done = command(*tables("+features.gaze=" + str(tmp_path / "f.npz")))
    assert done.returncode == 0, done.stderr
    shown = command("inspect", str(tmp_path / "s"))
    assert shown.returncode == 0
    assert "text 4-d, gaze 4-d" in shown.stdout


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_the_command_refuses_a_malicious_pickle(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps((Touch(tmp_path / "victim"),)))
    arguments = ("source=pickle", "corpus=meld", f"path={tmp_path / 'evil.pkl'}", f"out={tmp_path / 's'}")
    done = command(*arguments)
    assert done.returncode == 1
    assert re.search(r"Error: .*'(posix|nt)\.system'.*nothing in it was executed", done.stderr)
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_inspecting_what_is_no_store(tmp_path: Path) -> None:
    done = command("inspect", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no feature store")


# A file limit is the nearest thing to a full disk that needs no privileges.
FULL_DISK = """
import resource, sys
from merc.prepare import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
sys.argv = ["merc.prepare", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file limits")
def test_a_full_disk(tmp_path: Path, tables: Callable[..., list[str]]) -> None:
    arguments = [sys.executable, "-c", FULL_DISK, *tables()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Error: Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "u.csv"]


@pytest.mark.skipif(not REAL_MELD.is_dir(), reason="the real MELD is not in ../shared/data/meld")
def test_the_real_meld(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "source=meld_csv",
        f"annotations={REAL_MELD}",
        f"features.text={REAL_MELD}/text_minilm_*.npz",
        f"features.audio={REAL_MELD}/audio_speech_cues_*.csv",
        f"out={tmp_path / 's'}",
        "missing=mean",
    ]
    prepare(compose(overrides, "prepare"))
    store, meta = read_store(tmp_path / "s"), read_meta(tmp_path / "s")
    assert store.dims == {"text": 384, "audio": 8}
    assert meta["splits"] == {
        "train": {"dialogues": 1038, "utterances": 9989},
        "validation": {"dialogues": 114, "utterances": 1109},
        "test": {"dialogues": 280, "utterances": 2610},
    }
    speakers = dict.fromkeys(("train", "validation", "test"), 0)
    for split, rows in zip(store.splits, store.speakers.split(list(store.lengths)), strict=True):
        speakers[split] = max(speakers[split], len(set(rows.tolist())))
    assert speakers == {"train": 9, "validation": 8, "test": 8}
    audio = {gap["split"]: gap for gap in meta["completeness"]["gaps"] if gap["modality"] == "audio"}
    assert {split: gap["absent_examples"] for split, gap in audio.items()} == {
        "train": ["train/dia125_utt3"],
        "validation": ["dev/dia110_utt7"],
        "test": [],
    }
    assert {split: gap["rows_with_nan"] for split, gap in audio.items()} == {
        "train": 376,
        "validation": 44,
        "test": 120,
    }
    assert {split: gap["nan_columns"] for split, gap in audio.items()} == {
        "train": {"avg_pitch": 77, "articulation_rate": 370},
        "validation": {"avg_pitch": 12, "articulation_rate": 43},
        "test": {"avg_pitch": 26, "articulation_rate": 116},
    }
    unused = {name for left in meta["completeness"]["surplus"] for name in left["examples"]}
    assert unused == {
        "dev/dia49_utt4", "dev/dia49_utt5", "dev/dia66_utt9", "dev/dia66_utt10",
        "test/dia93_utt5", "test/dia93_utt6", "test/dia93_utt7", "test/dia108_utt1", "test/dia108_utt2",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "NaN, audio, train, by column: avg_pitch 77, articulation_rate 370" in printed
    assert "No row, audio, validation: dev/dia110_utt7" in printed
