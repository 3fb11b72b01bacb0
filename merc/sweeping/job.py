"""One job of a sweep, in whatever process a launcher runs it."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from merc.cli import Command, report
from merc.reporting.run_folder import RunLockedError
from merc.stacking import train_together
from merc.sweeping.devices import claim_gpu


class Result(StrEnum):
    """How a job ended."""

    DONE = "done"
    FAILED = "failed"
    ELSEWHERE = "left to another process"


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as plain values, which every launcher can send back.

    Args:
        result: how it ended.
        error: why it failed.
    """

    result: Result
    error: str = ""


@dataclass(frozen=True)
class SweepJob:
    """What a launcher calls: a command's job, with one seed or a list of them, that reports errors instead of raising.

    Args:
        command: whose job it is.
        program: path of the program as the shell has it; its processes are told the overrides of this job.
    """

    command: Command
    program: str

    def __call__(self, cfg: DictConfig) -> list[Outcome]:
        settings = HydraConfig.get()
        if settings.sweeper.threads is not None:
            torch.set_num_threads(settings.sweeper.threads)
        if cfg.trainer.devices == 1 and cfg.trainer.accelerator != "cpu":
            claim_gpu()
        # Lightning starts the helpers of a distributed run with it, and environment.json shows it.
        arguments, sys.argv = sys.argv, [self.program, *settings.overrides.task]
        environment = dict(os.environ)
        try:
            errors = self._errors(cfg)
        finally:
            sys.argv = arguments
            _leave_distributed_run(environment)
        for error in dict.fromkeys(errors):  # what befell several seeds is said once
            if error is not None and not isinstance(error, RunLockedError):
                report(error, self.command.config_name)
        return [_outcome(error) for error in errors]

    def _errors(self, cfg: DictConfig) -> Sequence[Exception | None]:
        """What kept each seed from finishing; None where it finished."""
        several = isinstance(cfg.seed, ListConfig)
        try:
            if several:
                return train_together(cfg)
            self.command.job(cfg)
        except Exception as error:
            return [error] * (len(cfg.seed) if several else 1)
        return [None]


def _outcome(error: Exception | None) -> Outcome:
    if error is None:
        return Outcome(Result.DONE)
    if isinstance(error, RunLockedError):
        return Outcome(Result.ELSEWHERE)
    return Outcome(Result.FAILED, str(error) or type(error).__name__)


def _leave_distributed_run(environment: Mapping[str, str]) -> None:
    """Forget the helpers of a distributed run, which have ended, and the port at which they were met.

    Args:
        environment: the variables before the run.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
