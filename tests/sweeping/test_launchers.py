"""The same sweep by way of every launcher: processes, local submitit jobs, and SLURM by a stand-in of its commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from merc.reporting.run_folder import RunFolder
from merc.sweeping.manifest import find_manifests, read_manifest
from tests.sweeping.conftest import TINY

pytestmark = pytest.mark.slow

SBATCH = """#!/bin/sh
# Keeps the script and runs the tasks of its array in the background, as a cluster would.
cp "$1" "$SLURM_STAND_IN/script.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_JOB_ID=12 SLURM_ARRAY_JOB_ID=12 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here
(sleep 1; for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$1"; done) >/dev/null 2>&1 &
echo "Submitted batch job 12"
"""

SRUN = """#!/bin/sh
# Leaves out the options and runs the rest.
while :; do
  case "$1" in
    --unbuffered) shift ;;
    --output | --error) shift 2 ;;
    --*) shift ;;
    *) break ;;
  esac
done
exec "$@"
"""

SACCT = "#!/bin/sh\necho 'JobID|State'\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder into which the stand-in of sbatch puts the batch script."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(folder))
    return folder


def sweep(experiments: Path, *arguments: str, seeds: str = "1") -> tuple[str, list[RunFolder]]:
    """The last line of the sweep, and the folders of its runs."""
    command = [sys.executable, "-m", "merc.train", "-m", "--config-dir", str(experiments / "conf")]
    settings = ["experiment=toy/modalities", *TINY, f"seed={seeds}", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    (path,) = find_manifests(Path("runs"))
    return done.stdout.splitlines()[-1], [RunFolder(Path("runs") / job.run) for job in read_manifest(path).jobs]


def threads(folder: RunFolder) -> int:
    return int(json.loads(folder.environment.read_text())["hardware"]["threads"])


def test_joblib_shares_the_cores_among_processes(experiments: Path) -> None:
    summary, folders = sweep(experiments, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", seeds="1,2")
    assert summary == "Sweep of 6 jobs: 6 done"
    assert len({folder.read_status()["pid"] for folder in folders}) == 2
    assert all(threads(folder) * 2 <= max(os.cpu_count() or 1, 2) for folder in folders)


def test_local_submitit_has_a_process_for_every_job(experiments: Path) -> None:
    settings = ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2", "hydra.sweeper.threads=1"]
    summary, folders = sweep(experiments, *settings)
    assert summary == "Sweep of 3 jobs: 3 done"
    assert len({folder.read_status()["pid"] for folder in folders}) == 3
    assert [threads(folder) for folder in folders] == [1, 1, 1]


def test_slurm_gets_an_array_with_the_resources_that_were_asked_for(experiments: Path, slurm: Path) -> None:
    settings = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1", "hydra.launcher.partition=long"]
    limits = ["hydra.launcher.timeout_min=90", "hydra.launcher.array_parallelism=2"]
    more = ["+hydra.launcher.additional_parameters.mail-user=me@example.org"]
    summary, folders = sweep(experiments, *settings, *limits, *more)
    assert summary == "Sweep of 3 jobs: 3 done"
    assert all(folder.finished for folder in folders)
    script = (slurm / "script.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    expected = {
        "array": "0-2%2",
        "cpus-per-task": "4",
        "gpus-per-node": "1",
        "job-name": "merc",
        "mail-user": "me@example.org",
        "mem": "8GB",
        "nodes": "1",
        "partition": "long",
        "time": "90",
    }
    assert {name: options[name] for name in expected} == expected
    assert re.search(r"^srun .* -m submitit.core._submit ", script, re.MULTILINE)


def test_distributed_runs_follow_each_other(experiments: Path) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.size=0.025", "seed=1,2"]
    tiny = [setting for setting in TINY if not setting.startswith(("trainer=", "data.size"))]
    command = [sys.executable, "-m", "merc.train", "-m", *tiny]
    done = subprocess.run([*command, *two], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Sweep of 2 jobs: 2 done\n")


def test_a_job_that_dies_is_told_and_taken_up_again(experiments: Path) -> None:
    """A process that is killed in a launcher's hands: the sweep ends with its error, and the next one completes it."""
    settings = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=40", *TINY[:-1]]
    command = [sys.executable, "-m", "merc.train", "-m", "--config-dir", str(experiments / "conf")]
    arguments = ["experiment=toy/modalities", "seed=1", *settings]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pid = None
        while pid is None:
            states = [RunFolder(path).read_status() for path in Path("runs").glob("*/seed=1")]
            pid = next((state["pid"] for state in states if state.get("epoch", 0) > 1), None)
        os.kill(pid, 9)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "The launcher gave up" in out
    done = subprocess.run([*command, *arguments[:2], *settings[2:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout.splitlines()[-1]
