"""What is chosen before libraries in C are loaded: how long threads wait, and how freed memory is kept."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from merc import startup


@pytest.mark.parametrize(
    ("cores", "running", "spare"),
    [
        (2, [1, 1, 1, 1, 1], True),
        (2, [3, 1, 1, 2, 1], True),
        (2, [2, 2, 1, 3, 2], False),
        (16, [8, 8, 8, 8, 8], True),
        (16, [9, 9, 9, 9, 9], False),
    ],
)
def test_cores_are_spare_where_less_than_half_are_taken(
    monkeypatch: pytest.MonkeyPatch, cores: int, running: list[int], spare: bool
) -> None:
    looks = iter(running)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(startup, "_running_threads", lambda: next(looks))
    assert startup._spare_cores() is spare


def test_a_system_that_does_not_tell_has_none_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    def mute() -> int:
        raise FileNotFoundError("/proc/loadavg")

    monkeypatch.setattr(startup, "_running_threads", mute)
    assert not startup._spare_cores()


def settings_of_a_process(given: dict[str, str]) -> tuple[str | None, str | None]:
    """Wait policy and turns in a process with these environment variables, once it has imported merc."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", startup.CHOSEN)
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-c", f"import os, merc; print([os.environ.get(name) for name in {names[:2]}])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    policy, turns = ast.literal_eval(done.stdout)
    return policy, turns


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_sets_stays(given: dict[str, str]) -> None:
    expected = ("ACTIVE", None) if "OMP_WAIT_POLICY" in given else ("PASSIVE", "7")
    assert settings_of_a_process(given) == expected


@pytest.mark.parametrize("chosen", ["20000", "1000", "3"])
def test_what_a_parent_process_chose_is_chosen_again(chosen: str) -> None:
    inherited = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": chosen, startup.CHOSEN: chosen}
    assert settings_of_a_process(inherited)[1] in ("20000", "1000")
    assert settings_of_a_process(inherited | {"GOMP_SPINCOUNT": "7"})[1] == "7"


class RestartedError(Exception):
    """In place of a process that becomes another one."""


@pytest.mark.parametrize(
    ("command", "restarts"),
    [
        (["python", "-m", "merc.train", "data=meld"], True),
        (["python", "-X", "dev", "-m", "merc.sweep", "status"], True),
        (["python", "/somewhere/bin/merc-train", "-m", "seed=1,2"], True),
        (["python", "merc-ablation.py"], False),
        (["python", "-m", "pytest", "-m", "merc.train"], False),
        (["python", "-m", "other.merc.train"], False),
        (["python", "script.py", "-m", "merc.train"], False),
        (["python", "-c", "import merc"], False),
        (["python"], False),
    ],
)
def test_only_commands_of_its_own_are_started_again(
    monkeypatch: pytest.MonkeyPatch, command: list[str], restarts: bool
) -> None:
    def execute(program: str, arguments: list[str]) -> None:
        assert [program, *arguments] == [sys.executable, sys.executable, *command[1:]]
        raise RestartedError

    program = next((part for part in command[1:] if part != "dev" and not part.startswith("-X")), "")
    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", command)
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setenv(startup.ALLOCATOR, "")  # to be restored
    monkeypatch.delenv(startup.ALLOCATOR)
    for _ in range(2):  # once, even if it did not come to it
        try:
            startup._keep_memory_whole()
        except RestartedError:
            assert restarts
            restarts = False
    assert not restarts


def test_commands_are_those_that_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [f"merc-{command}" for command in startup.COMMANDS] == list(project["scripts"])


def test_nobody_who_has_chosen_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "merc.train"])
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.setenv(startup.ALLOCATOR, "glibc.malloc.check=0")
    startup._keep_memory_whole()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_a_command_runs_with_memory_kept_whole(tmp_path: Path) -> None:
    said = f'import atexit, os; atexit.register(lambda: print("at the end", os.environ["{startup.ALLOCATOR}"]))'
    (tmp_path / "sitecustomize.py").write_text(said, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != startup.ALLOCATOR}
    environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, "-m", "merc.models", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[-1] == f"at the end {startup.WHOLE}", done.stderr
