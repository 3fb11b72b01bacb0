"""What an experiment may say, and what is refused."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from merc.config import compose
from merc.errors import MercError
from merc.reporting.report.columns import COSTS
from merc.reporting.statistics import measure_names
from merc.sweeping.experiment import REQUIRED, Axis, experiment_names, parse_experiment, read_experiment

AXES = {"x": {"label": "window", "values": {"full": 10, "narrow": 5}}}

NODE: dict[str, Any] = {
    "name": "method/table",
    "title": "A table",
    "kind": "lines",
    "source": "A paper, Table 1",
    "seeds": [1, 2],
    "reference": "full",
    "columns": ["accuracy"],
    "axes": AXES,
    "variants": {"full": [], "narrow": ["hyperparameters.window=5"]},
    "published": {"meld": {"full": {"accuracy": 61.2}, "another method": {"accuracy": 60}}},
    "remarks": ["The rows do not follow from their cells."],
    "smoke": {"seeds": [1], "variants": ["narrow"]},
}


def node(**changes: Any) -> dict[str, Any]:
    return {**NODE, **changes}


def test_an_experiment_is_read_as_it_is_written() -> None:
    axes = {"x": Axis("window", {"full": 10, "narrow": 5})}
    assert vars(parse_experiment(node(), "method/table")) == NODE | {"axes": axes}


def test_most_keys_have_defaults() -> None:
    short = parse_experiment({key: NODE[key] for key in REQUIRED}, "method/table")
    assert (list(short.seeds), short.reference, short.published, short.remarks) == ([1], None, {}, ())


def test_a_smoke_run_has_the_seeds_and_variants_that_it_names() -> None:
    smoke = parse_experiment(node(), "method/table").reduced()
    assert (smoke.seeds, smoke.variants) == ([1], {"narrow": ["hyperparameters.window=5"]})


def test_a_smoke_run_has_everything_that_is_not_named() -> None:
    smoke = parse_experiment(node(smoke={}), "method/table").reduced()
    assert (smoke.seeds, smoke.variants) == (NODE["seeds"], NODE["variants"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "names 'sedes', which is none of name, title, "),
        ({"sedes": [1]}, "Did you mean 'seeds'?"),
        ({1: "name"}, "names '1', which is none of name, title, "),
        ({"title": ""}, "it says nothing under 'title'"),
        ({"variants": {}}, "it says nothing under 'variants'"),
        ({"kind": "heatmap"}, "a heatmap needs axes.x and axes.y"),
        ({"axes": {"z": {"label": "window", "values": {}}}}, "axes must be a mapping of x, y and series"),
        ({"name": "method/other"}, "Name it like its file: method/table"),
        ({"kind": "pie"}, "kind must be one of table, lines"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"seeds": [1.5]}, "seeds must be a list of whole numbers"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers"),
        ({"reference": "ful"}, "reference names 'ful', which is none of full, narrow. Did you mean 'full'?"),
        ({"smoke": {"variants": ["narow"]}}, "smoke.variants names 'narow', which is none of full, narrow."),
        ({"smoke": {"epochs": 1}}, "smoke must be a mapping with seeds and variants alone"),
        ({"axes": {"x": {"label": "w", "values": {"wide": 1}}}}, "axes.x names 'wide', which is none of full, narrow."),
        ({"axes": {"x": {"label": "w", "values": {5: 1}}}}, "axes must be a mapping"),
        ({"axes": {"x": {"label": "w", "values": {"full": 1, "narrow": "few"}}}}, "all numbers or all texts"),
        ({"axes": {**AXES, "series": {"label": "of", "values": {"full": 1}}}}, "axes.series leaves out narrow."),
        ({"axes": {"series": {"label": "of", "values": {"full": 1}}}}, "axes.series leaves out narrow."),
        ({"variants": {"full": "graph=none"}}, "variants must be a mapping: name (a text, maybe in quotes)"),
        ({"variants": {5: []}}, "variants must be a mapping: name (a text, maybe in quotes)"),
        ({"published": {"meld": {"full": 61.2}}}, "published must be a mapping: corpus → row → column → number"),
        ({"published": {"meld": {"full": {"accuracy": "61.2"}}}}, "published must be a mapping"),
        ({"columns": "accuracy"}, "columns must be a list of measures"),
        ({"published": {"meld": {"full": {"accuracy": None}}}}, "published must be a mapping"),
        ({"remarks": "none"}, "remarks must be a list"),
    ],
)
def test_a_mistake_is_explained(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(MercError) as error:
        parse_experiment(NODE | changes, "method/table")
    assert "method/table" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("wieghted_f1", "Did you mean 'weighted_f1'?"),
        ("per_class_f2", "Did you mean 'per_class_f1'?"),
        ("train_second", "Did you mean 'train_seconds'?"),
        ("per_class_accuracy", ""),
        ("support/joy", ""),
        ("accuracy/joy", ""),
        ("f1", ""),
        ("f1/", ""),
        ("dialogues", ""),
        ("wa_acc", ""),
    ],
)
def test_a_column_that_no_run_fills_is_refused(column: str, hint: str) -> None:
    with pytest.raises(MercError) as error:
        parse_experiment(node(columns=["accuracy", column]), "method/table")
    assert f"columns names '{column}', which is none of accuracy, " in str(error.value)
    assert hint in str(error.value)


def test_every_column_that_a_run_fills_can_be_asked_for() -> None:
    columns = [*measure_names(["joy", "no emotion"]), "per_class_precision", "per_class_recall", "per_class_f1", *COSTS]
    assert parse_experiment(node(columns=columns), "method/table").columns == columns


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("corpora", ["dialogues", "utterances", "speakers", "classes"], None),
        ("corpora", ["accuracy"], "columns names 'accuracy', which is none of dialogues"),
        ("robustness", ["macro_f1", "f1/joy"], None),
        ("robustness", ["f1/joy", "weighted_f1"], None),
        ("robustness", ["f1/joy", "macro_f1"], r"columns\[0\]=f1/joy is none of accuracy"),
        ("robustness", ["parameters"], r"columns\[0\]=parameters is none of accuracy"),
    ],
)
def test_columns_fit_the_kind(kind: str, columns: list[str], message: str | None) -> None:
    with nullcontext() if message is None else pytest.raises(MercError, match=message):
        parse_experiment(node(kind=kind, columns=columns), "method/table")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("experiment: {kind: table}", "it says nothing under 'name'"),
        ("experiment: [1]", "has no node 'experiment'"),
        ("{", "cannot be read"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "a.yaml").write_text(content)
    with pytest.raises(MercError, match=message) as error:
        read_experiment("a", tmp_path)
    assert "\n" not in str(error.value)


def test_what_there_is_not_names_the_nearest() -> None:
    with pytest.raises(MercError, match=r"Did you mean 'redifu/stages'\?.*config_dir"):
        read_experiment("redifu/stage")


@pytest.mark.parametrize("name", experiment_names())
def test_a_file_says_the_same_to_reports_as_to_sweeps(name: str) -> None:
    composed = OmegaConf.to_container(compose([f"experiment={name}"]).experiment, resolve=True)
    assert read_experiment(name) == parse_experiment(composed, name)  # type: ignore[arg-type]
