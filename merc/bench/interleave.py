"""Measuring in turns: one sample of every subject, then the next round, so that the machine's drift hits all alike."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from merc import startup
from merc.bench.subjects import Sample, Turns
from merc.errors import MercError
from merc.memory import keep_freed_memory

Subject = Callable[[Turns], None]
"""See :mod:`merc.bench.subjects`; it must travel to another process: a function, or a ``partial`` of one."""

PATIENCE = 60
"""Seconds that a process may take to end."""


@dataclass
class Samples:
    """What was measured of one subject.

    Attributes:
        rounds: seconds by name, one entry per round.
        others: per round, the share of the cores that other processes had meanwhile; None: the system does not tell.
        rejected: samples thrown away because of them.
        busy: rounds kept although others had too much, for want of retries.
    """

    rounds: list[Sample] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    rejected: int = 0
    busy: int = 0


@dataclass(frozen=True)
class Worker:
    """A subject in a process of its own."""

    name: str
    process: BaseProcess
    connection: Connection

    def sample(self) -> tuple[Sample, float | None]:
        """One sample, and the share that other processes had.

        Raises:
            MercError: the subject's process ended.
        """
        try:
            self.connection.send(None)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise MercError(
                f"The process that measures '{self.name}' was killed, probably for want of memory. Free some, or "
                "measure less: models=[...], size=0.5."
            ) from error
        if isinstance(answer, str):
            raise MercError(f"'{self.name}' cannot be measured: {answer}")
        seconds, others = answer
        return seconds, others

    def end(self) -> None:
        """Let the process clean up and end."""
        self.connection.close()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def interleave(
    subjects: Mapping[str, Subject], rounds: int, others_at_most: float, retries: int, note: Callable[[str], None]
) -> dict[str, Samples]:
    """Samples of every subject, taken in turns; the first one of each only warms up.

    Args:
        subjects: by name.
        rounds: samples of each.
        others_at_most: a sample is thrown away when other processes had a larger share of the cores, 0 … 1.
        retries: most samples of a subject that are thrown away.
        note: told what is being done.

    Raises:
        MercError: a subject failed.
    """
    measured = {name: Samples() for name in subjects}
    with _workers(subjects) as workers:
        for name, worker in workers.items():
            note(f"{name}: warming up")
            worker.sample()
        for number in range(1, rounds + 1):
            for name, worker in workers.items():
                note(f"{name}: round {number}/{rounds}")
                _measure(worker, measured[name], others_at_most, retries)
    return measured


def _measure(worker: Worker, samples: Samples, most: float, retries: int) -> None:
    seconds, others = worker.sample()
    while others is not None and others > most and samples.rejected < retries:
        samples.rejected += 1
        seconds, others = worker.sample()
    samples.busy += others is not None and others > most
    samples.rounds.append(seconds)
    samples.others.append(others)


@contextmanager
def _workers(subjects: Mapping[str, Subject]) -> Iterator[dict[str, Worker]]:
    # They take turns: their threads may wait as those of this process, which had the cores to itself.
    os.environ.pop(startup.CHOSEN, None)
    context = multiprocessing.get_context("spawn")
    workers: dict[str, Worker] = {}
    try:
        for name, subject in subjects.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(subject, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[name] = Worker(name, process, ours)
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def _serve(subject: Subject, connection: Connection) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            keep_freed_memory()  # as every command does
            subject(Turns(connection))
        except EOFError:
            return  # nothing more is wanted
        except Exception as error:
            connection.send(str(error) if isinstance(error, MercError) else traceback.format_exc())
