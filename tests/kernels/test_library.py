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

needs_compiler = pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")

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
    path = library.library()
    assert path.parent == fresh
    assert [file.name for file in fresh.iterdir()] == [path.name]  # nothing is left of the compiling
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled once more"))
    assert library.library() == path
    monkeypatch.setattr(library, "_processor", lambda: ["another one"])
    with pytest.raises(pytest.fail.Exception):
        library.library()


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
    assert ("environment variable CXX" in result.stderr) == (compiler != "false")
    assert ("false failed" in result.stderr) == (compiler == "false")


def test_they_can_be_switched_off() -> None:
    result = in_a_process(**{CHOICE: "off"})
    assert result.stdout.split()[1] == "False"
    assert not result.stderr


@needs_compiler
def test_a_broken_file_is_said_and_not_used(fresh: Path) -> None:
    fresh.mkdir()
    command = [*library._compiler(), *library.FLAGS, *library._of_processor(), *library._of_torch()]
    (fresh / f"kernels-{library._fingerprint(command)}.so").write_bytes(b"half a library")
    result = in_a_process(XDG_CACHE_HOME=str(fresh.parent))
    assert result.stdout.split()[1] == "False"
    assert "Could not load this library" in result.stderr


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(library, "_compiler", lambda: ["g++"])
    with pytest.raises(UnavailableError, match="set XDG_CACHE_HOME"):
        library.library()


def test_the_command_says_where_they_are_or_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "library", lambda: Path("kernels.so"))
    assert command.main() == 0
    assert "kernels.so" in capsys.readouterr().out

    def unavailable() -> Path:
        raise UnavailableError("no compiler")

    monkeypatch.setattr(command, "library", unavailable)
    assert command.main() == 0
    assert "no compiler" in capsys.readouterr().out
