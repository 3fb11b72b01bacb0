"""Compiling and loading the operators, and doing without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.func import vmap

from merc.kernels import __main__ as command
from merc.kernels import library, native
from merc.kernels.library import CHOICE, UnavailableError, loaded

SWITCHED_OFF = os.environ.get(CHOICE) == "off"


def there_is_a_compiler() -> bool:
    try:
        library._compiler()
    except UnavailableError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not there_is_a_compiler() or SWITCHED_OFF, reason="there is no C++ compiler")


@needs_compiler
def test_where_there_is_a_compiler_there_are_operators() -> None:
    """All other tests of them are skipped where they cannot be loaded."""
    assert library.load().is_file()
    assert loaded()


TRAIN = (
    "import torch, merc; from merc.models.dropout import dropout; torch.manual_seed(0);"
    "from merc.kernels.library import loaded; print(dropout(torch.ones(4000), 0.5).mean().item(), loaded())"
)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "merc"


def in_a_process(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**os.environ, CHOICE: "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_compiler
def test_tensors_that_the_operators_take() -> None:
    x = torch.zeros(2)
    assert native(x, None, x.bfloat16())
    assert not native(x, x.double())
    assert not native(x.half())
    assert not native(x.to("meta"))
    taken: list[bool] = []
    vmap(lambda row: (taken.append(native(row)), row)[1])(torch.zeros(2, 2))
    assert taken == [False]


@needs_compiler
@pytest.mark.slow
def test_they_are_compiled_once_for_a_processor(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda _: None)  # this process has the same ones already
    path = library.load()
    assert path.parent == fresh
    assert [file.name for file in fresh.iterdir()] == [path.name]  # nothing is left of the compiling
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled once more"))
    monkeypatch.setattr(library, "_compiler", lambda: pytest.fail("looked for a compiler"))
    assert library.load() == path
    monkeypatch.setattr(library, "_processor", lambda: ["another one"])
    with pytest.raises(pytest.fail.Exception, match="once more"):
        library.load()


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_without_a_working_compiler_everything_goes_on(
    fresh: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = in_a_process(CXX=compiler, XDG_CACHE_HOME=str(fresh.parent))
    assert result.returncode == 0, result.stderr
    mean, are_loaded = result.stdout.split()
    assert float(mean) == pytest.approx(1, abs=0.1)
    assert are_loaded == "False"
    assert "without its own operators" in result.stderr
    assert ("which the environment variable CXX names" in result.stderr) == (compiler != "false")
    assert ("false failed" in result.stderr) == (compiler == "false")


def test_they_can_be_switched_off() -> None:
    result = in_a_process(**{CHOICE: "off"})
    assert result.stdout.split()[1] == "False"
    assert not result.stderr


@needs_compiler
@pytest.mark.slow
def test_a_broken_file_is_made_again(fresh: Path) -> None:
    made = in_a_process(XDG_CACHE_HOME=str(fresh.parent))
    (path,) = fresh.iterdir()
    path.write_bytes(b"half a library")
    again = in_a_process(XDG_CACHE_HOME=str(fresh.parent))
    assert again.stdout == made.stdout
    assert again.stdout.split()[1] == "True", again.stderr
    path.write_bytes(b"half a library")
    result = in_a_process(XDG_CACHE_HOME=str(fresh.parent), CXX="/nowhere/g++")
    assert result.stdout.split()[1] == "False"
    assert "there is no /nowhere/g++" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("XDG_CACHE_HOME", "file", "set XDG_CACHE_HOME"), ("CXX", "g++ '", "CXX is no command")],
)
def test_what_is_in_the_way_is_said(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    (fresh.parent / "file").write_text("")
    monkeypatch.setenv(variable, str(fresh.parent / value) if value == "file" else value)
    with pytest.raises(UnavailableError, match=message):
        library.load()


def test_of_what_a_compiler_says_the_errors_are_shown_or_else_the_end() -> None:
    said = ["in file a.h", "a.h:3: error: no such thing", "note: here", "b.h:4: error: another"]
    assert library._what_failed("\n".join(said)) == "\n".join(said[1::2])
    linker = ["ld: cannot find -ltorch_cpu", "collect2: error"]
    assert library._what_failed("\n".join(["warning"] * 20 + linker)).splitlines()[-2:] == linker


def test_the_command_says_where_they_are_or_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load", lambda: Path("kernels.so"))
    assert command.main() == 0
    assert "kernels.so" in capsys.readouterr().out

    monkeypatch.setenv(CHOICE, "off")
    assert command.main() == 0
    assert CHOICE in capsys.readouterr().out

    def unavailable() -> Path:
        raise UnavailableError("no compiler")

    monkeypatch.setattr(command, "load", unavailable)
    assert command.main() == 0
    assert "no compiler" in capsys.readouterr().out
