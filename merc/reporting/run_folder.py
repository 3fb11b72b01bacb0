"""The run folder: everything that a run leaves behind, and who may write there.

config.yaml          the resolved configuration
environment.json     versions, git commit, hardware
status.json          running, finished or failed, with the error; who worked on it, when, how often and how long
metrics.csv          one row per epoch
metrics.json         the test scores at the selected, the last and the best test epoch
predictions.parquet  every utterance of the evaluated splits, from the selected epoch
checkpoints/         last.ckpt (complete, every epoch or as often as the disk allows), selected.ckpt (weights of the
                     best validation epoch)
costs.json           parameters, operations, seconds of training and of inference
corpus.json          dialogues, utterances and classes of every split, and the fingerprint of the feature store
profile.txt          operators of training steps by their time, with trace.json, after debug=profiler
robustness.json      scores under noise and without modalities, when `python -m merc.evaluate` was asked for them
tensorboard/         what logger=tensorboard writes
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from merc.errors import MercError
from merc.files import discard_temporaries, write_json, write_text

BESIDES_THE_RUN = (
    "run_root",
    "run_dir",
    "resume",
    "overwrite",
    "logger",
    "experiment",
    "variants",
    "profile_steps",
    "seeds_per_process",
    "compile",
)
"""Keys that say how a run is run, or for which table, not what it computes."""

LOCK = ".lock"
"""The file in a run folder that its process holds locked."""

# A glance at the lock holds it for a moment; whoever wants to keep it tries again.
_ATTEMPTS, _PAUSE = 5, 0.05


class RunLockedError(MercError):
    """Another process is writing to the run folder."""


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def history(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def selected(self) -> Path:
        return self.checkpoints / "selected.ckpt"

    @property
    def reported(self) -> Path:
        """The checkpoint whose predictions are the run's: of the selected epoch, without validation of the last."""
        return self.selected if self.selected.exists() else self.last

    @property
    def costs(self) -> Path:
        return self.path / "costs.json"

    @property
    def corpus(self) -> Path:
        return self.path / "corpus.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile.txt"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    @property
    def robustness(self) -> Path:
        return self.path / "robustness.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that merc writes here, at once or not at all; what a logger writes is its own."""
        return (
            self.status,
            self.config,
            self.environment,
            self.history,
            self.metrics,
            self.predictions,
            self.costs,
            self.corpus,
            self.profile,
            self.trace,
            self.robustness,
            self.last,
            self.selected,
        )

    def read_status(self) -> dict[str, Any]:
        """The content of status.json; empty when there is none."""
        if not self.status.exists():
            return {}
        status: dict[str, Any] = json.loads(self.status.read_text(encoding="utf-8"))
        return status

    def update_status(self, **changes: Any) -> None:
        """Replace some entries of status.json."""
        write_json(self.status, self.read_status() | changes)

    @property
    def finished(self) -> bool:
        return self.read_status().get("state") == "finished"

    @property
    def locked(self) -> bool:
        """Whether a process is writing here."""
        try:
            with (self.path / LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def run_name(choices: Mapping[str, Any]) -> str:
    """``<model>-<data>``, as chosen on the command line; the folders of a model's runs begin with it."""
    return f"{choices['model']}-{choices['data']}"


def run_path(cfg: DictConfig, name: str) -> Path:
    """The folder of a run: ``run_dir`` where it is set, else the one that belongs to the configuration.

    Args:
        cfg: the configuration as composed.
        name: ``<model>-<data>``.
    """
    return Path(cfg.run_dir) if cfg.run_dir else default_path(cfg, name)


def default_path(cfg: DictConfig, name: str) -> Path:
    """The folder that belongs to a configuration: ``<run_root>/<name>-<hash>/seed=<seed>``.

    The hash is taken of the configuration as composed, before interpolation, so that what follows the seed does
    not set the seeds of one variant apart.
    """
    computed = OmegaConf.to_container(cfg)
    assert isinstance(computed, dict)
    for key in (*BESIDES_THE_RUN, "seed"):
        computed.pop(key, None)
    digest = hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:8]
    return Path(cfg.run_root) / f"{name}-{digest}" / f"seed={cfg.seed}"


@contextmanager
def claim(folder: RunFolder, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the run folder for this process, and keep its status.json true.

    A new run starts in an empty folder; what a run left that failed before its first checkpoint is thrown away.
    A finished run is held without being changed.

    Args:
        folder: the run folder; made when it does not exist.
        config: the plain resolved configuration.
        resume: go on with the run in the folder.
        overwrite: throw that run away.

    Raises:
        RunLockedError: another process is writing there.
        MercError: the folder holds a run and neither option was given (or both), the run to resume has another
            configuration, or the folder holds something that is no run.
    """
    if resume and overwrite:
        raise MercError("resume=true and overwrite=true contradict each other. Choose one.")
    with _lock(folder):
        attempts = folder.read_status().get("attempts", 0) + 1
        _prepare(folder, config, resume=resume, overwrite=overwrite)
        if folder.finished:
            yield
            return
        before = folder.read_status()
        me = {"pid": os.getpid(), "host": socket.gethostname(), "attempts": attempts}
        clock, seconds = time.monotonic(), before.get("seconds", 0.0)
        # The status comes first: it makes the folder a run folder, which the next command may clear or go on with.
        folder.update_status(state="running", error=None, started=before.get("started", _now()), ended=None, **me)
        write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        try:
            yield
        except BaseException as error:
            # When the disk is full this write fails as well, and the error at hand says more.
            with suppress(MercError):
                end = _end(seconds + time.monotonic() - clock)
                folder.update_status(state="failed", error=str(error) or type(error).__name__, **end)
            raise
        folder.update_status(state="finished", **_end(seconds + time.monotonic() - clock))


def _end(seconds: float) -> dict[str, Any]:
    return {"ended": _now(), "seconds": round(seconds, 3)}


@contextmanager
def _lock(folder: RunFolder) -> Iterator[None]:
    """The kernel frees this lock when its process ends in whatever way."""
    try:
        # Before there is a lock: what is no run folder stays as it is.
        _refuse_what_was_never_locked(folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        file = (folder.path / LOCK).open("w")
    except OSError as error:
        raise MercError(
            f"Cannot write to the run folder {folder.path}: {error.strerror}. "
            "Choose another with run_root=… or run_dir=…."
        ) from error
    with file:
        if not _acquire(file):
            owner = folder.read_status()
            raise RunLockedError(
                f"Process {owner.get('pid')} on {owner.get('host')} is writing to {folder.path}. "
                "Wait for it, stop it, or choose another folder with run_dir=…."
            )
        yield


def _refuse_what_was_never_locked(folder: RunFolder) -> None:
    """Refuse a folder of others that has no lock either.

    Whoever makes a run folder locks it before any other file, so a file that is seen there is younger than the lock.
    """
    strangers = _strangers(folder) if folder.path.is_dir() else []
    if not (folder.path / LOCK).exists():
        _refuse_no_run(folder, strangers)


def _strangers(folder: RunFolder) -> list[str]:
    return [path.name for path in folder.path.iterdir() if path.name != LOCK]


def _refuse_no_run(folder: RunFolder, strangers: Sequence[str]) -> None:
    if strangers and not folder.status.exists():
        raise MercError(
            f"{folder.path} holds {', '.join(sorted(strangers)[:3])} and no status.json, so it is no run folder. "
            "Choose another with run_dir=…."
        )


def _acquire(file: TextIO) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE)
    return False


def _prepare(folder: RunFolder, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    for file in folder.files:
        discard_temporaries(file)
    strangers = _strangers(folder)
    if not strangers:
        return
    _refuse_no_run(folder, strangers)
    if overwrite or not (folder.finished or folder.last.exists()):
        _clear(folder)
    elif resume:
        _refuse_other_configuration(folder, config)
    else:
        state = "a finished" if folder.finished else "an unfinished"
        raise MercError(
            f"{folder.path} holds {state} run. Add resume=true to go on with it, overwrite=true to start again, "
            "or choose another folder with run_dir=…."
        )


def _clear(folder: RunFolder) -> None:
    # The status goes last: without it an interrupted clearing would leave a folder that nobody may touch.
    for path in sorted(folder.path.iterdir(), key=lambda path: path == folder.status):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _refuse_other_configuration(folder: RunFolder, config: Mapping[str, Any]) -> None:
    there = _flat(OmegaConf.to_container(OmegaConf.load(folder.config)))
    here = _flat(OmegaConf.to_container(OmegaConf.create(dict(config))))
    differing = [
        f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, "absent") != here.get(key, "absent") and key.split(".")[0] not in BESIDES_THE_RUN
    ]
    if differing:
        raise MercError(
            f"The run in {folder.path} has another configuration: {'; '.join(differing)}. "
            "Resume it with the command that started it, or choose another folder with run_dir=…."
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip("."): node}
    return {key: leaf for name, value in node.items() for key, leaf in _flat(value, f"{prefix}{name}.").items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
