"""Two runs side by side, against scikit-learn and counting by hand."""

import numpy as np
import pytest
from lab import Lab
from sklearn.metrics import f1_score

from merc.errors import MercError
from merc.reporting import statistics
from merc.reporting.report.compare import (
    Pair,
    comparison_figures,
    comparison_tables,
    read_history,
    read_pair,
    write_comparison,
)
from merc.reporting.report.sections import Sampling
from merc.reporting.report.tables import Table


def pair_of(lab: Lab, first: float = 0.5, second: float = 0.7) -> Pair:
    paths = [lab.run(f"{name}/seed=1", skill) for name, skill in (("a", first), ("b", second))]
    return read_pair(paths[0], paths[1], Sampling(resamples=300))


def values(table: Table, column: str) -> dict[str, float | None]:
    index = table.columns.index(column)
    return {row[0].text: row[index].value for row in table.rows}


def test_classes_and_scores_are_scikit_learns(lab: Lab) -> None:
    scores, classes, _ = comparison_tables(pair_of(lab))
    one, two = lab.predict(0.5, 1), lab.predict(0.7, 1)
    weighted = [100 * f1_score(lab.labels, each, average="weighted") for each in (one, two)]
    assert values(scores, "a/seed=1")["weighted F1"] == pytest.approx(weighted[0])
    assert values(scores, "difference")["weighted F1"] == pytest.approx(weighted[0] - weighted[1])
    for name, each in (("a/seed=1", one), ("b/seed=1", two)):
        expected = 100 * f1_score(lab.labels, each, average=None)
        assert list(values(classes, name).values()) == pytest.approx(list(expected))


def test_p_values_of_classes_are_adjusted_over_the_classes(lab: Lab) -> None:
    pair = pair_of(lab, 0.5, 0.58)
    assert pair.tests is not None
    first, second = (test.confusions[None] for test in pair.tests)
    p_values = statistics.compare(first, second, 300).p_runs[-3:]
    adjusted = list(values(comparison_tables(pair)[1], "p").values())
    assert adjusted == pytest.approx(statistics.holm(list(p_values)))
    assert max(adjusted) > max(p_values)


def test_changed_utterances_are_counted(lab: Lab) -> None:
    changes = comparison_tables(pair_of(lab))[2]
    right, now_right = (lab.predict(skill, 1) == lab.labels for skill in (0.5, 0.7))
    assert values(changes, "right → wrong")["all"] == (right & ~now_right).sum()
    assert values(changes, "wrong → right")["all"] == (~right & now_right).sum()
    joy = lab.labels == 1
    assert values(changes, "right in both")["joy"] == (right & now_right & joy).sum()
    assert sum(cell.value or 0 for cell in changes.rows[-1][1:]) == len(lab.labels)


def test_curves_are_those_of_the_histories(lab: Lab) -> None:
    pair = pair_of(lab)
    figures = comparison_figures(pair)
    history = read_history(pair.second.folder.history)
    panels = {panel.get_title(): panel for panel in figures["curves"].axes}
    assert list(panels["test/weighted_f1"].lines[1].get_ydata()) == history["test/weighted_f1"]
    assert [panel.get_title() for panel in figures["balancing"].axes] == ["score", "q"]


def test_epochs_without_a_value_are_gaps(lab: Lab) -> None:
    path = lab.run("a/seed=1") / "metrics.csv"
    path.write_text("epoch,balancing/q_text\n1,\n2,0.5\n")
    assert np.isnan(read_history(path)["balancing/q_text"][0])
    assert read_history(path)["balancing/q_text"][1] == 0.5


def test_runs_without_predictions_still_have_curves(lab: Lab) -> None:
    paths = lab.run("a/seed=1"), lab.run("b/seed=1", state="running")
    pair = read_pair(paths[0], paths[1], Sampling())
    (table,) = comparison_tables(pair)
    assert table.notes == ["No tests: the runs have no predictions of the same test utterances."]
    assert values(table, "b/seed=1")["accuracy"] is None
    assert "curves" in comparison_figures(pair)


def test_names_are_as_short_as_they_can_be(lab: Lab) -> None:
    seeds = [lab.run(f"model/seed={seed}") for seed in (1, 2)]
    assert read_pair(seeds[0], seeds[1], Sampling()).names == ("seed=1", "seed=2")
    assert pair_of(lab).names == ("a/seed=1", "b/seed=1")


def test_a_run_is_not_compared_with_itself(lab: Lab) -> None:
    path = lab.run("a/seed=1")
    with pytest.raises(MercError, match="Both runs are"):
        read_pair(path, path / ".." / "seed=1", Sampling())


def test_files_are_written(lab: Lab) -> None:
    target = write_comparison(pair_of(lab), lab.runs / "out")
    names = {path.name for path in target.parent.iterdir()}
    assert names == {"compare.md", "compare.html", "curves.png", "curves.pdf", "balancing.png", "balancing.pdf"}
    assert target.parent.name == "a-seed1--b-seed1"
