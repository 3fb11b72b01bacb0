"""Command lines without Hydra."""

import sys
from typing import Any

import pytest

from merc.arguments import help_text, parse, run
from merc.errors import INTERRUPTED, MercError


def test_names_and_settings_are_told_apart() -> None:
    names, settings = parse(["a/b", "out=x=y", "runs/mine/seed=1", "figures=false", "level=0.9", "seed=3"], "report")
    assert names == ["a/b", "runs/mine/seed=1"]
    assert settings["out"] == "x=y"
    assert settings["figures"] is False
    assert settings["level"] == 0.9
    assert settings["seed"] == 3
    assert settings["run_root"] == "runs"


def test_null_and_text_for_a_key_without_a_value() -> None:
    assert parse(["config_dir=null"], "report")[1]["config_dir"] is None
    assert parse(["config_dir=12"], "report")[1]["config_dir"] == "12"


@pytest.mark.parametrize("argument", ["seed=1.5", "level=high", "figures=1", "ot=x", "-x"])
def test_mistakes_are_refused(argument: str) -> None:
    with pytest.raises(MercError):
        parse([argument], "report")


def test_help_has_the_comments() -> None:
    assert help_text("What it does.", "report").startswith("What it does.")
    assert "# folder of the run folders" in help_text("", "report")


@pytest.mark.parametrize(
    ("error", "status"), [(MercError("No such run."), "Error: No such run."), (KeyboardInterrupt(), INTERRUPTED)]
)
def test_a_mistake_and_ctrl_c_end_without_a_traceback(
    error: BaseException, status: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(names: list[str], settings: dict[str, Any]) -> None:
        assert (names, settings["seed"]) == (["runs/a"], 3)
        raise error

    monkeypatch.setattr(sys, "argv", ["report.py", "runs/a", "seed=3"])
    with pytest.raises(SystemExit) as stopped:
        run(command, "What it does.", "report")
    assert stopped.value.code == status


def test_help_does_nothing_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "-h", "no=key"])
    run(lambda names, settings: pytest.fail("ran"), "``What`` it does.", "report")
    assert capsys.readouterr().out.startswith("What it does.")
