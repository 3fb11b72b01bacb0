"""Freed memory stays with the process, where that can be had."""

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from merc import memory

FAULTS = """
import resource, sys
from merc.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
size = 64 * 2**20
block = b"x" * size
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of memory that is allocated again after it was freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("kept") < 0.1 * faults("as the system has it")


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str | None) -> None:
        raise AssertionError("a library was loaded")

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "darwin")
    memory.keep_freed_memory()


def test_a_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(sys, "platform", "linux")
    memory.keep_freed_memory()


@pytest.mark.parametrize(("device", "size", "room"), [("cuda", 25, True), ("cuda", 26, False), ("cpu", 1, False)])
def test_data_stay_on_a_gpu_that_has_room(monkeypatch: pytest.MonkeyPatch, device: str, size: int, room: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    assert memory.has_room(torch.device(device), size) is room
