"""The three epochs of metrics.json and the rows of metrics.csv."""

import csv
import io
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from merc.reporting.history import summarize, to_csv

F1 = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


def scores(weighted_f1: float) -> dict[str, Any]:
    return {
        "accuracy": 0.5,
        "weighted_precision": 0.5,
        "weighted_f1": weighted_f1,
        "macro_f1": 0.5,
        "per_class": {},
        "confusion_matrix": [[1]],
    }


def history(pairs: list[tuple[float, float]], validation: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": number,
            "values": {"train/loss": 1.0 / number},
            "scores": ({"validation": scores(v)} if validation else {}) | {"test": scores(t)},
        }
        for number, (v, t) in enumerate(pairs, start=1)
    ]


@given(F1)
@settings(max_examples=50)
def test_only_validation_selects_and_the_earliest_wins(pairs: list[tuple[float, float]]) -> None:
    metrics = summarize(history(pairs))
    validation = [v for v, _ in pairs]
    test = [t for _, t in pairs]
    assert metrics["selected"]["epoch"] == validation.index(max(validation)) + 1
    assert metrics["selected"]["validation_weighted_f1"] == max(validation)
    assert metrics["selected"]["weighted_f1"] == test[metrics["selected"]["epoch"] - 1]
    assert metrics["test_best"]["epoch"] == test.index(max(test)) + 1
    assert metrics["last"]["epoch"] == len(pairs)


def test_without_validation_nothing_is_selected() -> None:
    assert list(summarize(history([(0.1, 0.2), (0.3, 0.1)], validation=False))) == ["last", "test_best"]


def test_csv_has_a_row_per_epoch_and_keeps_every_digit() -> None:
    epochs = history([(0.1, 0.2)] * 3)
    epochs[2]["values"]["balancing/theta"] = 0.1 + 0.2
    rows = list(csv.DictReader(io.StringIO(to_csv(epochs))))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["balancing/theta"] == ""
    assert float(rows[2]["balancing/theta"]) == 0.1 + 0.2
