"""What the commands print says the names as they are."""

import pytest
from rich.table import Table

from merc.reporting.tables import class_table, show

SCORES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4}


@pytest.mark.parametrize("name", ["[angry]", "[red]bored", "[/]", ":smile:"])
def test_names_are_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(class_table({name: SCORES}, title=f"Scores of {name}"))
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == f"Scores of {name}"
    (row,) = (line for line in lines if "33.33" in line)
    assert row.split()[1] == name
    assert {len(line) for line in lines} == {len(row)}


def test_headers_and_lines_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(Table("[red]x", "y"))
    show("runs/[bold]mine/robustness.json")
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "runs/[bold]mine/robustness.json" in shown
