"""What only a fresh process shows: how long a command takes to its first step, and how much memory it needs."""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from merc.bench.machine import Idleness
from merc.data.corpora import CORPORA
from merc.data.store import read_store, write_store
from merc.data.synthetic import generate
from merc.errors import MercError

IMPORTS = "import torch, lightning, json, time; print(json.dumps({'first_step': time.monotonic()}), flush=True)"


def prepare(corpus: str, size: float, path: Path) -> None:
    """Write a feature store in the published shape of a corpus, generated in a process of its own.

    Args:
        corpus: a key of :data:`merc.data.corpora.CORPORA`.
        size: share of the published number of dialogues.
        path: the folder to create.
    """
    process = multiprocessing.get_context("spawn").Process(target=_generate, args=(corpus, size, path))
    process.start()
    process.join()
    if process.exitcode:
        raise MercError(f"The feature store {path} could not be written; the message stands above.")


def _generate(corpus: str, size: float, path: Path) -> None:
    write_store(path, generate(CORPORA[corpus], size), corpus=corpus, sources={})


def data_bytes(path: Path) -> int:
    """Bytes of the features of a store."""
    return sum(rows.numel() * rows.element_size() for rows in read_store(path, verify=False).features.values())


def start_up(overrides: Sequence[str], others_at_most: float, retries: int) -> tuple[float, float]:
    """Seconds from the command to the first training step, and to the end of importing torch and lightning alone.

    Args:
        overrides: of a run on a prepared store.
        others_at_most: measure again when other processes had a larger share of the cores.
        retries: but not more often than this.
    """
    for _ in range(retries + 1):
        with Idleness() as beside:
            seconds = _start_up(overrides)
        if (beside.others or 0.0) <= others_at_most:
            break
    return seconds


def _start_up(overrides: Sequence[str]) -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        command = [*_probe(overrides), f"run_dir={folder}/run"]
        return _until_first_step(command), _until_first_step([sys.executable, "-c", IMPORTS])


def _until_first_step(command: Sequence[str]) -> float:
    start = time.monotonic()
    with (
        TemporaryFile("w+") as errors,  # not a pipe, which would be full before anybody reads it
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        found = next((json.loads(line) for line in process.stdout if line.startswith('{"first_step"')), None)
        process.kill()
        if found is None:
            errors.seek(0)
            raise MercError(f"{' '.join(command)} took no training step: {errors.read()}")
    return float(found["first_step"]) - start


def peak(overrides: Sequence[str]) -> int:
    """Bytes of the largest resident set of a whole run with these overrides."""
    with TemporaryDirectory() as folder:
        command = [*_probe(overrides), f"run_dir={folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MercError(f"{' '.join(command)} failed: {done.stderr}")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"resident"'))
    return int(json.loads(line)["resident"])


def _probe(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "merc.bench.probe", *overrides]
