"""What is chosen before libraries in C are loaded: how long threads wait."""

import ast
import os
import subprocess
import sys

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
