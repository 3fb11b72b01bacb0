import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from merc.config import compose, instantiate
from merc.data.completeness import Surplus
from merc.data.corpora import IEMOCAP, MELD
from merc.data.sources import Extract, MeldCsv, UtteranceTables
from merc.data.sources.extract import check_speakers, count_gaps, fill_gaps
from merc.data.sources.table_files import read_features, read_strings
from merc.errors import MercError

IDS = ("a0", "a1", "b0", "c0")
ROWS = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.float32)
COLUMNS = {name: name for name in ("dialogue", "position", "utterance", "speaker", "label", "split", "text")}
UTTERANCES = [
    {"dialogue": "a", "position": 1, "utterance": "a1", "speaker": "Bo", "label": "Joy", "split": "train"},
    {"dialogue": "b", "position": 0, "utterance": "b0", "speaker": "Al", "label": "calm", "split": "DEV"},
    {"dialogue": "a", "position": 0, "utterance": "a0", "speaker": "Al", "label": "calm", "split": "train"},
    {"dialogue": "c", "position": 0, "utterance": "c0", "speaker": "Cy", "label": "joy ", "split": "test"},
]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_features(path: Path, ids: Sequence[str] = IDS, rows: np.ndarray[Any, Any] = ROWS) -> str:
    np.savez(path, ids=np.array(ids), features=rows)
    return str(path)


def source(folder: Path, rows: Sequence[Mapping[str, Any]] = UTTERANCES, **options: Any) -> UtteranceTables:
    settings: dict[str, Any] = {"features": {"text": write_features(folder / "t.npz")}, "columns": COLUMNS}
    return UtteranceTables(write_csv(folder / "u.csv", rows), **(settings | options))


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**utterance, **values} if i == row else utterance for i, utterance in enumerate(UTTERANCES)]


# --- feature tables -----------------------------------------------------------------------------------------------


def csv_table(path: Path) -> None:
    write_csv(path, [{"name": i, "pitch": r[0], "energy": r[1]} for i, r in zip(IDS, ROWS, strict=True)])


def parquet_columns(path: Path) -> None:
    pq.write_table(pa.table({"x": ROWS[:, 0], "id": list(IDS), "y": ROWS[:, 1].astype("f8")}), path)


def parquet_lists(path: Path) -> None:
    pq.write_table(pa.table({"id": list(IDS), "vector": ROWS.tolist()}), path)


def npz_table(path: Path) -> None:
    np.savez_compressed(path, ids=np.array(IDS), features=ROWS.astype("f2"))


def npz_by_id(path: Path) -> None:
    np.savez(path, **dict(zip(IDS, ROWS, strict=True)))


def safetensors_table(path: Path) -> None:
    save_file({"features": ROWS}, path, metadata={"ids": json.dumps(IDS)})


def safetensors_by_id(path: Path) -> None:
    save_torch({name: torch.tensor(row).bfloat16() for name, row in zip(IDS, ROWS, strict=True)}, path)


FORMATS: dict[str, tuple[Callable[[Path], None], str]] = {
    "csv": (csv_table, "f.csv"),
    "parquet columns": (parquet_columns, "f.parquet"),
    "parquet lists": (parquet_lists, "f.parquet"),
    "npz table": (npz_table, "f.npz"),
    "npz by id": (npz_by_id, "f.npz"),
    "safetensors table": (safetensors_table, "f.safetensors"),
    "safetensors by id": (safetensors_by_id, "f.safetensors"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_features(tmp_path: Path, kind: str) -> None:
    write, name = FORMATS[kind]
    write(tmp_path / name)
    got = read_features(tmp_path / name)
    assert got.rows.dtype == np.float32
    assert dict(zip(got.ids, got.rows.tolist(), strict=True)) == dict(zip(IDS, ROWS.tolist(), strict=True))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    write, name = FORMATS[kind]
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-3] if name == "f.csv" else content[: len(content) // 2])
    if name == "f.csv":
        (tmp_path / name).write_bytes(content + b"a9,1\n")
    with pytest.raises(MercError, match=f"Cannot read .*{name}"):
        read_features(tmp_path / name)


def test_column_names_may_be_given(tmp_path: Path) -> None:
    write_csv(tmp_path / "f.csv", [{"clip": 1, "x": 2.5}, {"clip": 2, "x": ""}])
    got = read_features(tmp_path / "f.csv", id_column="clip")
    assert (got.ids, got.columns) == (("1", "2"), ("x",))
    assert np.array_equal(got.rows, [[2.5], [np.nan]], equal_nan=True)
    np.savez(tmp_path / "f.npz", names=np.array(IDS), x=ROWS)
    assert np.array_equal(read_features(tmp_path / "f.npz", "names", "x").rows, ROWS)
    with pytest.raises(MercError, match=r"has no 'nams', only names, x\. Did you mean 'names'"):
        read_features(tmp_path / "f.npz", "nams", "x")


def test_every_modality_may_have_a_column_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "f.parquet"
    columns = {"id": list(IDS), "words": (ROWS * 10).tolist(), "mfcc": ROWS.tolist(), "seconds": [0.5] * 4}
    pq.write_table(pa.table(columns), file)
    settings = ["source=tables", f"utterances={write_csv(tmp_path / 'u.csv', UTTERANCES)}", f"out={tmp_path / 's'}"]
    settings += [f"features.text={file}", f"features.audio={file}", "features_column.text=words"]
    got = instantiate(compose([*settings, "features_column.audio=mfcc"], "prepare").source).read().conversations
    assert got.features["text"].tolist() == (ROWS * 10).tolist()
    assert got.features["audio"].tolist() == ROWS.tolist()
    with pytest.raises(MercError, match=r"several .*: words, mfcc, seconds\..*features_column\.audio="):
        instantiate(compose(settings, "prepare").source).read()
    got = instantiate(compose([*settings[:-1], "features_column=seconds"], "prepare").source).read().conversations
    assert got.features["text"].tolist() == got.features["audio"].tolist() == [[0.5]] * 4


def test_numbers_beside_a_list_are_not_dropped_silently(tmp_path: Path) -> None:
    file = tmp_path / "f.parquet"
    pq.write_table(pa.table({"id": list(IDS), "vector": ROWS.tolist(), "seconds": [1, 2, 3, 4]}), file)
    with pytest.raises(MercError, match=r"several .*: vector, seconds\. Name one with features_column="):
        read_features(file)
    assert np.array_equal(read_features(file, features_column="vector").rows, ROWS)
    pq.write_table(pa.table({"id": list(IDS), "vector": ROWS.tolist(), "said": list("wxyz")}), file)
    assert np.array_equal(read_features(file, "id").rows, ROWS)  # words cannot be meant


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_is_not_there(tmp_path: Path, kind: str) -> None:
    write, name = FORMATS[kind]
    write(tmp_path / name)
    by_id = kind.endswith("by id")
    message = "no array of ids.*features_column=vecto chooses none" if by_id else "no 'vecto'.*Correct features_column="
    with pytest.raises(MercError, match=message):
        read_features(tmp_path / name, features_column="vecto")


@pytest.mark.parametrize(("kind", "column"), [("csv", "energy"), ("parquet columns", "y")])
def test_one_column_of_numbers(tmp_path: Path, kind: str, column: str) -> None:
    write, name = FORMATS[kind]
    write(tmp_path / name)
    got = read_features(tmp_path / name, features_column=column)
    assert (got.rows.tolist(), got.columns) == (ROWS[:, 1:].tolist(), (column,))


def test_ambiguous_or_wrong_tables(tmp_path: Path) -> None:
    write_csv(tmp_path / "two.csv", [{"a": "x", "b": "y", "c": 1}])
    with pytest.raises(MercError, match=r"2 columns of strings \(a, b\).*id_column="):
        read_features(tmp_path / "two.csv")
    write_csv(tmp_path / "word.csv", [{"a": "x", "b": "y", "c": 1}])
    with pytest.raises(MercError, match="column 'b' is not numeric"):
        read_features(tmp_path / "word.csv", id_column="a")
    np.savez(tmp_path / "short.npz", ids=np.array(IDS[:3]), features=ROWS)
    with pytest.raises(MercError, match=r"shape \(4, 2\) for 3 ids"):
        read_features(tmp_path / "short.npz")
    np.savez(tmp_path / "ragged.npz", a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(MercError, match=r"'b' has features of shape \(3,\), 'a' of shape \(2,\)"):
        read_features(tmp_path / "ragged.npz")
    np.savez(tmp_path / "object.npz", ids=np.array([["x"], 1], dtype=object), features=ROWS[:2])
    with pytest.raises(MercError, match=r"Cannot read .*object"):
        read_features(tmp_path / "object.npz")
    with pytest.raises(MercError, match=r"no file .*objct\.npz\. Did you mean 'object.npz'"):
        read_features(tmp_path / "objct.npz")
    (tmp_path / "f.txt").touch()
    with pytest.raises(MercError, match=r"no known format.*\.csv, \.parquet, \.npz, \.safetensors"):
        read_features(tmp_path / "f.txt")


def test_tables_of_utterances(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_bytes('\ufeffa,b\r\n"x, ""y""\nz",\r\n'.encode())
    assert read_strings(tmp_path / "u.csv") == {"a": ['x, "y"\nz'], "b": [""]}
    pq.write_table(pa.table({"a": [1, None], "b": ["x", "y"]}), tmp_path / "u.parquet")
    assert read_strings(tmp_path / "u.parquet") == {"a": ["1", ""], "b": ["x", "y"]}
    for content, message in (
        (b"a,b\n1\n", "row 1 has 1 cells, the header 2"),
        (b"a,b\n", "no rows"),
        (b"", "no rows"),
        (b"a\n\x92\n", "encoded in UTF-8"),
        (b'a\n"x\n', "Cannot read"),
    ):
        (tmp_path / "u.csv").write_bytes(content)
        with pytest.raises(MercError, match=message):
            read_strings(tmp_path / "u.csv")


# --- any corpus ---------------------------------------------------------------------------------------------------


def test_any_corpus(tmp_path: Path) -> None:
    extract = source(tmp_path, [{**row, "text": f"t{i}"} for i, row in enumerate(UTTERANCES)]).read()
    got = extract.conversations
    assert got.dialogue_ids == ("a", "b", "c")
    assert got.utterance_ids == ("a0", "a1", "b0", "c0")
    assert got.lengths == (2, 1, 1)
    assert got.splits == ("train", "validation", "test")
    assert got.label_names == ("calm", "joy")
    assert got.labels.tolist() == [0, 1, 0, 1]
    assert got.speakers.tolist() == [0, 1, 0, 0]
    assert got.features["text"].tolist() == ROWS.tolist()
    assert extract.speaker_names == ("Al", "Bo", "Al", "Cy")
    assert extract.texts == ("t2", "t0", "t1", "t3")
    assert not extract.surplus
    assert set(extract.files) == {str(tmp_path / "u.csv"), str(tmp_path / "t.npz")}


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{f"my {name}": value for name, value in row.items() if name != "position"} for row in UTTERANCES]
    columns = {name: f"my {name}" for name in COLUMNS} | {"position": None, "text": None}
    got = source(tmp_path, rows, columns=columns).read().conversations
    assert got.utterance_ids == ("a1", "a0", "b0", "c0")  # the order of the rows
    with pytest.raises(MercError, match=r"no column 'my lable'.*Did you mean 'my label'.*columns\.label="):
        source(tmp_path, rows, columns=columns | {"label": "my lable"}).read()
    with pytest.raises(MercError, match="no column 'None' for the speaker"):
        source(tmp_path, rows, columns=columns | {"speaker": None}).read()


def test_labels_in_the_order_given(tmp_path: Path) -> None:
    got = source(tmp_path, labels=["joy", "fear", "calm"]).read().conversations
    assert got.label_names == ("joy", "fear", "calm")
    assert got.labels.tolist() == [2, 0, 2, 0]


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "unknown label": (changed(1, label="clam"), {"labels": ["joy", "calm"]}, "'b0' has the label 'clam'.*'calm'"),
    "class twice": (UTTERANCES, {"labels": ["joy", "calm", "joy"]}, r"labels=\[joy,calm,joy\] names 'joy' twice"),
    "class in two cases": (UTTERANCES, {"labels": ["Joy", "calm", "joy"]}, "names 'joy' twice .*lower case"),
    "corpus label": ([changed(2, label="angr")[2]], {"corpus": "meld"}, "'angr'.*Did you mean 'anger'"),
    "unknown split": (changed(2, split="trian"), {}, "row 3 has the split 'trian'.*'train'"),
    "two splits": (changed(0, split="test"), {}, "dialogue 'a' is in two splits, train and test"),
    "no speaker": (changed(3, speaker=""), {}, "row 4 has no speaker"),
    "position": (changed(3, position="first"), {}, "row 4 .*'c0' of dialogue 'c' the position 'first', .* no finite"),
    "no position": (changed(0, position="nan"), {}, r"row 1 .*'a1' of dialogue 'a' .*'nan'.*columns\.position=null"),
    "far position": (changed(0, position="inf"), {}, "row 1 .*'inf', which is no finite number"),
    "same position": (changed(0, position="0.0"), {}, "'a0' of dialogue 'a' the position '0', which row 1 has too"),
    "same id": (changed(3, utterance="a0"), {}, "utterance id 'a0' 2 times"),
    "no features": (UTTERANCES, {"features": {"text": None}}, "No table of features"),
    "no split": ([{k: v for k, v in r.items() if k != "split"} for r in UTTERANCES], {}, "no column 'split'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables(tmp_path: Path, case: str) -> None:
    rows, options, message = BAD[case]
    with pytest.raises(MercError, match=message):
        source(tmp_path, rows, **options).read()


def test_ids_that_match_nothing(tmp_path: Path) -> None:
    file = write_features(tmp_path / "x.npz", ("x0", "x1", "x2", "x3"))
    with pytest.raises(MercError, match="it has 'x0', 'x1', 'x2' …; the utterances are 'a0', 'a1', 'b0' …"):
        source(tmp_path, features={"audio": file}).read()


def test_an_id_with_two_rows_is_ambiguous(tmp_path: Path) -> None:
    file = write_features(tmp_path / "x.npz", ("a0.wav", "a0.mp4", "b0", "c0"))
    with pytest.raises(MercError, match="'a0' 2 times"):
        source(tmp_path, features={"audio": file}).read()


def iemocap_rows() -> list[dict[str, Any]]:
    dialogues = ("Ses01F_impro01", "Ses01M_impro01", "Ses05F_script01_1")
    return [
        {"dialogue": d, "utterance": f"{d}_{who}{i:03}", "position": i, "speaker": who, "label": "happy"}
        for d in dialogues
        for i, who in enumerate("FMF")
    ]


def test_iemocap(tmp_path: Path) -> None:
    rows = iemocap_rows()
    ids = [f"{row['utterance']}.wav" for row in rows] + ["Ses01F_impro01_F099", "Ses03M_impro03_M000"]
    file = write_features(tmp_path / "x.npz", ids, np.arange(22, dtype=np.float32).reshape(11, 2))
    extract = source(tmp_path, rows, corpus="iemocap", features={"audio": file}).read()
    got = extract.conversations
    assert got.splits == ("train", "validation", "test")
    assert got.speakers.tolist() == [1, 0, 1] * 3  # M is 0, as in the published features
    assert got.label_names == IEMOCAP.label_names
    assert got.features["audio"][:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert extract.surplus == (Surplus("audio", file, 2, ("Ses01F_impro01_F099", "Ses03M_impro03_M000")),)


# --- gaps ---------------------------------------------------------------------------------------------------------


def gappy(folder: Path) -> Extract:
    rows = np.array([[1, np.nan], [np.inf, 4], [np.nan, 6]], dtype=np.float32)
    return source(folder, features={"text": write_features(folder / "g.npz", ("a0", "a1", "b0"), rows)}).read()


def test_gaps_are_counted_per_split(tmp_path: Path) -> None:
    gaps = {gap.split: gap for gap in count_gaps(gappy(tmp_path), "zero").gaps}
    counts = {s: (g.utterances, g.absent_rows, g.rows_with_nan, g.nan_values) for s, g in gaps.items()}
    assert counts == {"train": (2, 0, 2, 2), "validation": (1, 0, 1, 1), "test": (1, 1, 0, 0)}
    assert gaps["test"].absent_examples == ("c0",)
    assert {s: g.nan_examples for s, g in gaps.items()} == {"train": ("a0", "a1"), "validation": ("b0",), "test": ()}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("zero", [[1, 0], [0, 4], [0, 6], [0, 0]]), ("mean", [[1, 4], [1, 4], [1, 6], [1, 4]])],
)
def test_gaps_are_filled(tmp_path: Path, policy: str, expected: list[list[float]]) -> None:
    extract = gappy(tmp_path)
    assert fill_gaps(extract, count_gaps(extract, policy)).features["text"].tolist() == expected


def test_gaps_are_an_error_unless_chosen(tmp_path: Path) -> None:
    extract = gappy(tmp_path)
    message = "text, test: 1 of 1 utterances without a row, 0 NaN or infinite values in 0 others.*missing=mean"
    with pytest.raises(MercError, match=message):
        fill_gaps(extract, count_gaps(extract, "error"))


def test_a_mean_needs_training_values(tmp_path: Path) -> None:
    file = write_features(tmp_path / "g.npz", ("a0", "b0"), np.array([[np.nan, 1], [2, 2]], dtype=np.float32))
    extract = source(tmp_path, features={"text": file}).read()
    with pytest.raises(MercError, match="1 of the 2 features of the modality text have none"):
        fill_gaps(extract, count_gaps(extract, "mean"))


# --- MELD ---------------------------------------------------------------------------------------------------------


def meld_row(dialogue: int, utterance: int, speaker: str, emotion: str, text: str = "said") -> dict[str, Any]:
    return {
        "Sr No.": 1, "Utterance": text, "Speaker": speaker, "Emotion": emotion, "Sentiment": "neutral",
        "Dialogue_ID": dialogue, "Utterance_ID": utterance,
    }  # fmt: skip


def meld(folder: Path, train: Sequence[Mapping[str, Any]] | None = None) -> MeldCsv:
    splits = {
        "train": train or [meld_row(10, 1, "Bo", "anger"), meld_row(10, 0, "Al", "joy", 'two\nlines, "quoted"')],
        "dev": [meld_row(0, 0, "Cy", "neutral")],
        "test": [meld_row(0, 0, "Al", "fear"), meld_row(0, 2, "Al", "sadness")],
    }
    for split, rows in splits.items():
        write_csv(folder / f"{split}_sent_emo.csv", rows)
        names = [f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}" for row in rows]
        write_csv(folder / f"cues_{split}.csv", [{"file": f"{n}.wav", "pitch": i} for i, n in enumerate(names)])
        write_features(folder / f"text_{split}.npz", [*names, "dia99_utt0"], np.ones((len(rows) + 1, 2)))
    return MeldCsv(str(folder), {"text": f"{folder}/text_{{split}}.npz", "audio": f"{folder}/cues_*.csv"})


def test_meld(tmp_path: Path) -> None:
    extract = meld(tmp_path).read()
    got = extract.conversations
    assert got.dialogue_ids == ("train/dia10", "dev/dia0", "test/dia0")
    assert got.utterance_ids == (
        "train/dia10_utt0", "train/dia10_utt1", "dev/dia0_utt0", "test/dia0_utt0", "test/dia0_utt2",
    )  # fmt: skip
    assert got.splits == ("train", "validation", "test")
    assert [MELD.label_names[i] for i in got.labels.tolist()] == ["joy", "anger", "neutral", "fear", "sadness"]
    assert got.speakers.tolist() == [0, 1, 0, 0, 0]
    assert got.features["audio"].tolist() == [[1], [0], [0], [0], [1]]
    assert extract.texts is not None
    assert extract.texts[0] == 'two\nlines, "quoted"'
    assert [(left.rows, left.examples) for left in extract.surplus] == [
        (1, (f"{split}/dia99_utt0",)) for split in ("train", "dev", "test")
    ]
    assert extract.columns["audio"] == ("pitch",)


def test_more_speakers_than_slots(tmp_path: Path) -> None:
    rows = [meld_row(0, i, f"speaker {i}", "joy") for i in range(10)]
    extract = meld(tmp_path, rows).read()
    with pytest.raises(MercError, match=r"'train/dia0' has 10 speakers, but meld has 9 speaker slots.*corpus=custom"):
        check_speakers(extract, MELD.speaker_slots, "meld")


def test_bad_meld(tmp_path: Path) -> None:
    good = meld(tmp_path)
    with pytest.raises(MercError, match=r"one file per split, with \*"):
        MeldCsv(str(tmp_path), {"text": str(tmp_path / "text_train.npz")}).read()
    with pytest.raises(MercError, match=r"no file .*train_sent_emo\.csv"):
        MeldCsv(str(tmp_path / "elsewhere"), good.features).read()
    with pytest.raises(MercError, match="'happy', which is none of the classes neutral"):
        meld(tmp_path, [meld_row(0, 0, "Al", "happy")]).read()
    with pytest.raises(MercError, match="whole numbers"):
        meld(tmp_path, [meld_row(0, 0, "Al", "joy") | {"Dialogue_ID": "x"}]).read()
    with pytest.raises(MercError, match="'train/dia0_utt0' 2 times"):
        meld(tmp_path, [meld_row(0, 0, "Al", "joy"), meld_row(0, 0, "Al", "joy")]).read()
    with pytest.raises(MercError, match="'train/dia0_utt0' 2 times"):
        meld(tmp_path, [meld_row(0, 0, "Al", "joy"), meld_row(0, 0, "Al", "joy") | {"Utterance_ID": "00"}]).read()
    meld(tmp_path)
    np.savez(tmp_path / "text_dev.npz", ids=np.array(["dia0_utt0"]), features=np.ones((1, 3)))
    with pytest.raises(MercError, match=r"different numbers of features: 2 .* and 3"):
        good.read()
