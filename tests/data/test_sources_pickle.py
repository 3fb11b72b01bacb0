import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merc.data.completeness import Surplus
from merc.data.corpora import MELD
from merc.data.sources import PublishedPickle, safe_pickle
from merc.errors import MercError

TEXT, AUDIO, VISUAL = 4, 3, 2


def table(n: int, d: int, dtype: str = "f4") -> np.ndarray[Any, Any]:
    return np.random.default_rng(100 * n + d).normal(size=(n, d)).astype(dtype)


def meld_items() -> list[Any]:
    lengths = {0: 3, 5: 1, 1039: 2, 1153: 2}
    return [
        {d: list(range(n)) for d, n in lengths.items()},
        {d: [[float(k == i % 2) for k in range(9)] for i in range(n)] for d, n in lengths.items()},
        {d: [(d + i) % 7 for i in range(n)] for d, n in lengths.items()},
        *({d: list(table(n, TEXT)) for d, n in lengths.items()} for _ in range(4)),
        {d: table(n, AUDIO, "f8") for d, n in lengths.items()},
        {d: table(n, VISUAL, "f2").tolist() for d, n in lengths.items()},
        {d: [f"sentence {d} {i}" for i in range(n)] for d, n in lengths.items()},
        [5, 1039, 0],
        [1153],
        "a thirteenth item",
    ]


def iemocap_items() -> list[Any]:
    lengths = {"Ses01F_impro01": 2, "Ses01M_impro01": 3, "Ses05M_script01": 1}
    return [
        {d: [f"{d}_F{i:03}" for i in range(n)] for d, n in lengths.items()},
        {d: ["MF"[i % 2] for i in range(n)] for d, n in lengths.items()},
        {d: [i % 6 for i in range(n)] for d, n in lengths.items()},
        *({d: list(table(n, TEXT)) for d, n in lengths.items()} for _ in range(4)),
        {d: list(table(n, AUDIO)) for d, n in lengths.items()},
        {d: list(table(n, VISUAL)) for d, n in lengths.items()},
        {d: ["word"] * n for d, n in lengths.items()},
        {"Ses01M_impro01", "Ses01F_impro01"},
        {"Ses05M_script01"},
    ]


def dump(path: Path, items: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(items, protocol))
    return str(path)


def test_meld(tmp_path: Path) -> None:
    items = meld_items()
    extract = PublishedPickle(dump(tmp_path / "m.pkl", tuple(items)), "meld").read()
    got = extract.conversations
    assert got.dialogue_ids == ("5", "1039", "0", "1153")
    assert got.splits == ("train", "validation", "train", "test")
    assert got.lengths == (1, 2, 3, 2)
    assert got.utterance_ids[:4] == ("dia5_utt0", "dia1039_utt0", "dia1039_utt1", "dia0_utt0")
    assert got.speakers.tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert got.labels.tolist() == [5, 1039 % 7, 1040 % 7, 0, 1, 2, 1153 % 7, 1154 % 7]
    assert got.label_names == MELD.label_names
    order = (5, 1039, 0, 1153)
    for modality, item in (("text", 3), ("audio", 7), ("visual", 8)):
        expected = np.concatenate([np.asarray(items[item][d]) for d in order]).astype(np.float32)
        assert np.array_equal(got.features[modality].numpy(), expected)
    assert extract.texts is not None
    assert extract.texts[1] == "sentence 1039 0"


def test_dialogues_of_no_split_are_reported(tmp_path: Path) -> None:
    items = meld_items()
    path = dump(tmp_path / "m.pkl", tuple(items))
    assert PublishedPickle(path, "meld").read().surplus == ()
    items[10].remove(0)
    extract = PublishedPickle(dump(tmp_path / "m.pkl", tuple(items)), "meld").read()
    assert "0" not in extract.conversations.dialogue_ids
    assert extract.surplus == (Surplus("all", path, 3, ("dia0_utt0", "dia0_utt1", "dia0_utt2")),)


def test_iemocap(tmp_path: Path) -> None:
    got = PublishedPickle(dump(tmp_path / "i.pkl", tuple(iemocap_items())), "iemocap").read().conversations
    assert got.dialogue_ids == ("Ses01F_impro01", "Ses01M_impro01", "Ses05M_script01")  # a set is sorted
    assert got.splits == ("train", "validation", "test")
    assert got.utterance_ids[0] == "Ses01F_impro01_F000"
    assert got.speakers.tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("view", ["roberta1", "roberta2", "roberta3", "roberta4", "mean", "concat"])
def test_text_views(tmp_path: Path, view: str) -> None:
    items = meld_items()
    text = PublishedPickle(dump(tmp_path / "m.pkl", items), "meld", view).read().conversations.features["text"].numpy()
    views = [np.concatenate([np.asarray(items[i][d]) for d in (5, 1039, 0, 1153)]) for i in (3, 4, 5, 6)]
    expected = {"mean": np.mean(views, axis=0), "concat": np.hstack(views)}
    assert np.allclose(text, expected.get(view, views[int(view[-1]) - 1 if view[-1].isdigit() else 0]), atol=1e-7)


def test_unknown_text_view(tmp_path: Path) -> None:
    with pytest.raises(MercError, match="Did you mean 'concat'"):
        PublishedPickle(dump(tmp_path / "m.pkl", meld_items()), "meld", "concatt").read()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i8", "?", "U3", "S3", "O"])
def test_arrays_survive(tmp_path: Path, protocol: int, dtype: str) -> None:
    array = np.array([[1, 0, 2], [0, 1, 1]]).astype(dtype)
    value = {"c": array, "fortran": np.asfortranarray(array), "row": array[0], "set": {1, 2}, "od": OrderedDict(a=1)}
    loaded = safe_pickle.load(Path(dump(tmp_path / "a.pkl", value, protocol)))
    for name in ("c", "fortran", "row"):
        assert np.asarray(loaded[name]).tolist() == value[name].tolist()
    assert loaded["set"] == {1, 2}
    assert loaded["od"] == {"a": 1}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "U3"])
def test_scalars_survive(tmp_path: Path, dtype: str) -> None:
    scalar = np.array(["1"]).astype(dtype)[0]
    assert safe_pickle.load(Path(dump(tmp_path / "a.pkl", [scalar]))) == [scalar]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=10,
    ),
    st.integers(2, 5),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_containers_survive(tmp_path: Path, value: object, protocol: int) -> None:
    assert safe_pickle.load(Path(dump(tmp_path / "p.pkl", value, protocol))) == value


def test_pickles_of_numpy_1(tmp_path: Path) -> None:
    content = pickle.dumps(meld_items(), 2)
    assert b"numpy._core.multiarray" in content
    old = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    (tmp_path / "old.pkl").write_bytes(old)
    assert PublishedPickle(str(tmp_path / "old.pkl"), "meld").read().conversations.lengths == (1, 2, 3, 2)


def python2_array(values: list[float]) -> bytes:
    """A float32 array as Python 2 pickled it: the bytes are a str, non-ASCII included."""
    data = struct.pack(f"<{len(values)}f", *values)
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K" + bytes([len(values)]) + b"\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tb."
    )


def test_pickles_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(python2_array([1.5, -2.25, 3e20]))
    loaded = safe_pickle.load(tmp_path / "a.pkl")
    assert np.array_equal(np.asarray(loaded), np.array([1.5, -2.25, 3e20], np.float32))


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    items = [*meld_items()[:12], Shell(f"touch {victim}")]
    path = dump(tmp_path / "evil.pkl", tuple(items))
    with pytest.raises(MercError, match=r"the global '(posix|nt)\.system'.*nothing in it was executed"):
        PublishedPickle(path, "meld").read()
    assert not victim.exists()
    pickle.loads(Path(path).read_bytes())  # the very same bytes do execute elsewhere
    assert victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval", "builtins.getattr", "builtins.__import__", "__builtin__.exec", "os.system",
        "subprocess.Popen", "numpy.load", "numpy.f2py.compile", "numpy.testing._private.utils.runstring",
        "numpy.core.multiarray.fromfile", "numpy._core.multiarray.frombuffer", "functools.partial", "codecs.decode",
        "operator.attrgetter", "importlib.import_module", "torch.load", "copyreg._reconstructor",
    ],
)  # fmt: skip
def test_every_other_global_is_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    (tmp_path / "g.pkl").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(MercError, match=f"the global '{name}'"):
        safe_pickle.load(tmp_path / "g.pkl")


def test_dotted_names_do_not_escape(tmp_path: Path) -> None:
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(0, 4)[:2] + b"\x8c\x05numpy\x8c\x10ndarray.__base__\x93.")
    with pytest.raises(MercError, match="refused"):
        safe_pickle.load(tmp_path / "g.pkl")


class Forged:
    """Pickles as a call of numpy's own functions with arguments and a state of the attacker's choice."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_forged_array_type_does_not_reach_numpy(tmp_path: Path) -> None:
    # An object type whose flags deny that it holds objects makes numpy take any bytes for pointers.
    pointer = Forged(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
    with pytest.raises(MercError, match="array type 'V8'"):
        safe_pickle.load(Path(dump(tmp_path / "v.pkl", pointer)))
    named = Forged(np.dtype, ("O", False, True), (3, "|", None, ("a",), {}, 8, 1, 0))
    with pytest.raises(MercError, match="structured array type"):
        safe_pickle.load(Path(dump(tmp_path / "o.pkl", named)))
    state = (1, (1,), np.dtype("O"), False, b"12345678")
    reconstruct = np.array(0).__reduce__()[0]
    with pytest.raises(MercError, match="array of objects that is not a list"):
        safe_pickle.load(Path(dump(tmp_path / "b.pkl", Forged(reconstruct, (np.ndarray, (0,), b"b"), state))))


def test_codecs_other_than_latin1_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps(b"\xff", 2).replace(b"latin1", b"rot_13")
    (tmp_path / "c.pkl").write_bytes(content)
    with pytest.raises(MercError, match="encoding 'rot_13'"):
        safe_pickle.load(tmp_path / "c.pkl")


@given(share=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_pickle(tmp_path: Path, share: float) -> None:
    content = pickle.dumps(tuple(meld_items()), 2)
    (tmp_path / "t.pkl").write_bytes(content[: int(share * len(content))])
    with pytest.raises(MercError, match="truncated"):
        PublishedPickle(str(tmp_path / "t.pkl"), "meld").read()


# CPython's own unpickler complains unraisably about a byte array that is cut short.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_pickle_ends_in_a_clear_error_or_is_read(tmp_path: Path, places: list[tuple[float, int]]) -> None:
    content = bytearray(pickle.dumps(tuple(meld_items()), 2))
    for place, value in places:
        content[int(place * len(content))] = value
    (tmp_path / "d.pkl").write_bytes(content)
    with suppress(MercError):
        PublishedPickle(str(tmp_path / "d.pkl"), "meld").read()


def test_a_memory_bomb(tmp_path: Path) -> None:
    # A memo with two thousand million entries.
    (tmp_path / "bomb.pkl").write_bytes(b"\x80\x02]r" + struct.pack("<I", 2**31) + b".")
    with pytest.raises(MercError, match="more memory than its size explains"):
        PublishedPickle(str(tmp_path / "bomb.pkl"), "meld").read()


def test_a_bomb_of_references(tmp_path: Path) -> None:
    items = meld_items()
    nested: list[Any] = [0.0] * TEXT
    for _ in range(40):
        nested = [nested] * TEXT  # 4^41 numbers, a few hundred bytes
    items[3][0] = [nested] * 3
    with pytest.raises(MercError, match="'roberta1' of dialogue '0'"):
        PublishedPickle(dump(tmp_path / "b.pkl", items), "meld").read()


def test_layouts(tmp_path: Path) -> None:
    for value, message in (
        (tuple(meld_items()[:11]), "holds 11 items"),
        ((*meld_items(), 0), "holds 14 items"),
        ({"a": 1}, "holds a dict"),
        ((1, *meld_items()[1:]), "'ids' is a int, not a dict"),
        ((*meld_items()[:10], 3, 4), "not laid out as a published pickle"),
    ):
        with pytest.raises(MercError, match=message):
            PublishedPickle(dump(tmp_path / "l.pkl", value), "meld").read()


def change(item: int, dialogue: Any, value: Any) -> list[Any]:
    items = meld_items()
    items[item][dialogue] = value
    return items


BAD = {
    "ragged rows": (change(3, 1039, [[1.0] * TEXT, [1.0] * 3]), "'roberta1' of dialogue '1039' has rows of 3 and 4"),
    "another width": (change(7, 0, table(3, 9)), "'audio' of dialogue '0' has 9 features, other dialogues 3"),
    "rows missing": (change(8, 0, table(2, VISUAL)), "dialogue '0' has 3 labels but 2 entries of 'visual'"),
    "not numbers": (change(7, 5, [["a", "b", "c"]]), "'audio' of dialogue '5' has rows that are not numbers"),
    "flat": (change(7, 5, [1.0]), "'audio' of dialogue '5' has rows of shape"),
    "label": (change(2, 5, [7]), r"utterance 0 of dialogue '5' has the label 7; meld has the classes 0 to 6 \(neutral"),
    "negative label": (change(2, 5, [-1]), "has the label -1"),
    "too many slots": (change(1, 5, [[0.0] * 9 + [1.0]]), "dialogue '5'.*at most 9 speaker slots"),
    "not one-hot": (change(1, 5, [[1.0] * 9]), "dialogue '5'.*one-hot"),
    "unknown dialogue": ([*meld_items()[:11], [99]], "dialogue '99' has no 'labels'"),
    "empty": ([{**item, 0: []} if isinstance(item, dict) else item for item in meld_items()], "dialogue '0' is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content(tmp_path: Path, case: str) -> None:
    items, message = BAD[case]
    with pytest.raises(MercError, match=message):
        PublishedPickle(dump(tmp_path / "b.pkl", items), "meld").read()


def test_the_other_corpus_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(MercError, match="corpus=meld or corpus=iemocap"):
        PublishedPickle(dump(tmp_path / "m.pkl", meld_items()), None).read()
    with pytest.raises(MercError, match="are one-hot rows, unlike those of iemocap"):
        PublishedPickle(dump(tmp_path / "m.pkl", meld_items()), "iemocap").read()
    with pytest.raises(MercError, match="are letters, unlike those of meld"):
        PublishedPickle(dump(tmp_path / "i.pkl", iemocap_items()), "meld").read()


def test_nan_and_too_large_values_are_kept_for_counting(tmp_path: Path) -> None:
    rows = table(3, AUDIO, "f8")
    rows[1, 2], rows[2, 0] = np.nan, 1e300
    got = PublishedPickle(dump(tmp_path / "n.pkl", change(7, 0, rows)), "meld").read().conversations
    assert (~np.isfinite(got.features["audio"].numpy())).sum() == 2
