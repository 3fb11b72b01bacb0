"""What an experiment may say, and what is refused."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from merc.errors import MercError
from merc.sweeping.experiment import read_experiment

NODE: dict[str, Any] = {
    "name": "method/table",
    "title": "A table",
    "kind": "heatmap",
    "source": "A paper, Table 1",
    "seeds": [1, 2],
    "reference": "full",
    "columns": ["accuracy"],
    "axes": {"x": {"label": "window", "values": {"full": 10, "narrow": 5}}},
    "variants": {"full": [], "narrow": ["hyperparameters.window=5"]},
    "published": {"meld": {"full": {"accuracy": 61.2}, "another method": {"accuracy": 60}}},
    "remarks": ["The rows do not follow from their cells."],
    "smoke": {"seeds": [1], "variants": ["narrow"]},
}


def node(**changes: Any) -> dict[str, Any]:
    return {**NODE, **changes}


def test_an_experiment_is_read_as_it_is_written() -> None:
    assert vars(read_experiment(node(), "method/table")) == NODE


def test_most_keys_have_defaults() -> None:
    short = read_experiment({"name": "a", "title": "A", "kind": "corpora"}, "a")
    assert (list(short.seeds), dict(short.variants), short.reference) == ([1], {}, None)


def test_a_smoke_run_has_the_seeds_and_variants_that_it_names() -> None:
    smoke = read_experiment(node(), "method/table").reduced()
    assert (smoke.seeds, smoke.variants) == ([1], {"narrow": ["hyperparameters.window=5"]})


def test_a_smoke_run_has_everything_that_is_not_named() -> None:
    smoke = read_experiment(node(smoke={}), "method/table").reduced()
    assert (smoke.seeds, smoke.variants) == (NODE["seeds"], NODE["variants"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "no key 'sedes'. Did you mean 'seeds'?"),
        ({"title": ""}, "give it a title"),
        ({"name": "method/other"}, "Name it like its file: method/table"),
        ({"kind": "pie"}, "kind must be one of table, lines"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"seeds": [1.5]}, "seeds must be a list of whole numbers"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers"),
        ({"reference": "ful"}, "reference names no variant 'ful'. Did you mean 'full'?"),
        ({"smoke": {"variants": ["narow"]}}, "smoke.variants names no variant 'narow'. Did you mean 'narrow'?"),
        ({"smoke": {"epochs": 1}}, "smoke must be a mapping with seeds and variants alone"),
        ({"axes": {"x": {"values": {"wide": 1}}}}, "axes.x names no variant 'wide'"),
        ({"variants": {"full": "graph=none"}}, "variants must be a mapping: name (a text, maybe in quotes)"),
        ({"variants": {5: []}}, "variants must be a mapping: name (a text, maybe in quotes)"),
        ({"published": {"meld": {"full": 61.2}}}, "published must be a mapping: corpus → row → column → number"),
        ({"published": {"meld": {"full": {"accuracy": "61.2"}}}}, "published must be a mapping"),
        ({"columns": "accuracy"}, "columns must be a list of measures"),
        ({"remarks": "none"}, "remarks must be a list"),
    ],
)
def test_a_mistake_is_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MercError) as error:
        read_experiment(node(**changes), "method/table")
    assert "method/table" in str(error.value)
    assert message in str(error.value)


def test_a_mistake_in_a_file_is_one_line() -> None:
    yaml = OmegaConf.create("{name: a, title: A, kind: table, variants: {x: [1]}}")
    with pytest.raises(MercError, match="variants must be"):
        read_experiment(OmegaConf.to_container(yaml), "a")  # type: ignore[arg-type]
