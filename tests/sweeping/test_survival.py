"""A sweep that is killed, or started twice at once, ends as one that was left in peace."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from merc.reporting.run_folder import RunFolder
from merc.sweeping.manifest import find_manifests, read_manifest
from tests.sweeping.conftest import TINY

# 3 variants × 10 seeds.
SWEEP = ("experiment=toy/modalities", "seed=1,2,3,4,5,6,7,8,9,10", *TINY, "trainer.max_epochs=4")


def start(run_root: str, conf: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "merc.train", "-m", "--config-dir", str(conf), *SWEEP, f"run_root={run_root}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def folders(run_root: str) -> list[RunFolder]:
    manifests = list(find_manifests(Path(run_root)))
    return [RunFolder(Path(run_root) / job.run) for path in manifests for job in read_manifest(path).jobs]


def done(run_root: str) -> int:
    return sum(folder.finished for folder in folders(run_root))


def results(run_root: str) -> Iterator[tuple[str, Any, Any]]:
    """Every run's place, scores and predictions."""
    for folder in folders(run_root):
        place = str(folder.path.relative_to(run_root))
        yield place, json.loads(folder.metrics.read_text()), pq.read_table(folder.predictions).to_pydict()


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(experiments: Path) -> None:
    whole = start("whole", experiments / "conf")
    assert whole.communicate()[0].endswith("Sweep of 30 jobs: 30 done\n")
    assert whole.returncode == 0
    moments = random.Random(0)  # noqa: S311
    reached: list[int] = []
    for _ in range(3):
        process = start("killed", experiments / "conf")
        goal = (reached[-1] if reached else 0) + moments.randint(3, 7)
        while done("killed") < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the sweep ended before it was killed"
        reached.append(done("killed"))
    assert reached == sorted(set(reached)), "the restarted sweeps did not go on"
    assert reached[-1] < 30
    last = start("killed", experiments / "conf")
    assert f"{reached[-1]} finished before, {30 - reached[-1]} done" in last.communicate()[0]
    assert last.returncode == 0
    assert list(results("killed")) == list(results("whole"))
    assert len(list(results("whole"))) == 30


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_do_no_job_twice(experiments: Path) -> None:
    processes = [start("shared", experiments / "conf") for _ in range(2)]
    manifests = set()
    while any(process.poll() is None for process in processes):
        manifests |= {path.read_text() for path in find_manifests(Path("shared"))}
        time.sleep(0.05)
    assert [process.wait() for process in processes] == [0, 0]
    assert len(manifests) == 1, "both write the same manifest"
    states = [folder.read_status() for folder in folders("shared")]
    assert [state["state"] for state in states] == ["finished"] * 30
    assert [state["attempts"] for state in states] == [1] * 30
    assert {state["pid"] for state in states} == {process.pid for process in processes}
