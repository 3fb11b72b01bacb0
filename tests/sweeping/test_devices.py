"""Each process of a sweep has a GPU of its own; the GPUs here are numbers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from merc.sweeping import devices

SCRIPT = """
import os, sys, torch
torch.cuda.device_count = lambda: int(sys.argv[1])
from merc.sweeping.devices import claim_gpu
claim_gpu()
print(os.environ.get("CUDA_VISIBLE_DEVICES", "all"), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    yield
    for file in devices._held:
        file.close()


def claim(count: int, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    devices.claim_gpu()
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.slow
def test_every_process_has_a_gpu_of_its_own_until_it_ends() -> None:
    def start() -> tuple["subprocess.Popen[str]", str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    started = [start() for _ in range(3)]
    assert [gpu for _, gpu in started] == ["0", "1", "2"]
    started[1][0].kill()
    started[1][0].wait()
    started.append(start())
    assert started[-1][1] == "1"
    started.append(start())
    assert started[-1][1] in {"0", "1", "2"}, "there are more processes than GPUs, so they share"
    for process, _ in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_chosen_without_a_choice(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim(count, monkeypatch) is None


def test_the_choice_is_among_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1a")
    assert claim(8, monkeypatch) == "5"
    assert claim(8, monkeypatch) == "5", "the second job of a process keeps its GPU"


def test_a_process_that_uses_its_gpu_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert claim(4, monkeypatch) is None
