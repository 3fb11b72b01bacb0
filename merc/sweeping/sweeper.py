"""The sweeper that Hydra calls for ``-m``: it plans the jobs, hands them to a launcher and says what became of them."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from merc.cli import Command, report
from merc.errors import MercError
from merc.reporting.corpus import refuse_other_features
from merc.reporting.run_folder import RunFolder
from merc.sweeping.job import Outcome, Result, SweepJob
from merc.sweeping.manifest import Job
from merc.sweeping.plan import Planner
from merc.sweeping.seeds import scores_over_seeds

LAUNCHER_MISSING = (
    "The launcher '{}' is not installed. Install it: pip install 'merc[sweeps]', "
    "or leave hydra/launcher out to run the jobs one after another."
)


class Sweep:
    """Runs experiments, and sweeps of the command line without one.

    Finished runs are skipped, interrupted ones go on, failed ones are tried again, and those that another process
    has are left to it.

    Args:
        context: of Hydra.
        command: whose job is to be done.
        config: of the multirun itself.
        max_batch_size: jobs handed to the launcher at a time, seeds trained at once being one; None: all.

    Raises:
        MercError: the launcher is not installed.
    """

    def __init__(
        self, context: HydraContext, command: TaskFunction, config: DictConfig, max_batch_size: int | None
    ) -> None:
        assert isinstance(command, Command)
        plugins = Plugins.instance()
        if config.hydra.launcher["_target_"] not in plugins.class_name_to_class:
            raise MercError(LAUNCHER_MISSING.format(config.hydra.runtime.choices["hydra/launcher"]))
        job = SweepJob(command, sys.argv[0])
        self.launcher = plugins.instantiate_launcher(context, job, config)
        self.planner = Planner(context.config_loader, config)
        self.config_name = command.config_name
        self.max_batch_size = max_batch_size

    def run(self, arguments: list[str]) -> None:
        """Run every job that is not finished.

        Args:
            arguments: the task overrides of the command line.

        Raises:
            MercError: the sweep cannot be planned, a finished run is of other features than there are now, or jobs
                failed.
            KeyboardInterrupt: the sweep was stopped.
        """
        plans = self.planner.expand(arguments)
        for plan in plans:
            if plan.manifest is not None:
                plan.manifest.write(plan.run_root)
        jobs = {plan.run_root / job.run: job for plan in reversed(plans) for job in reversed(plan.jobs)}
        # Of all jobs: what finished before must not change who is trained with whom.
        groups = _groups(
            {plan.run_root / job.run: (job, plan.seeds_per_process) for plan in plans for job in plan.jobs}
        )
        waiting = {
            plan.run_root / job.run
            for plan in plans
            for job in plan.jobs
            if plan.overwrite or not RunFolder(plan.run_root / job.run).finished
        }
        for path in jobs.keys() - waiting:
            refuse_other_features(RunFolder(path))
        try:
            outcomes = self._run(groups, waiting)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("The sweep was stopped. The same command goes on with it.") from interrupt
        # What an experiment has found, its report says.
        for line in scores_over_seeds(
            {plan.run_root / job.run: job.seed for plan in plans if plan.manifest is None for job in plan.jobs}
        ):
            print(line)
        _summarize(jobs, outcomes)

    def _run(self, groups: Sequence[Mapping[Path, Job]], waiting: Set[Path]) -> dict[Path, Outcome]:
        """Run these jobs; those that another process had are looked at again in the end, since it may have died.

        Args:
            groups: run folder → its job, for those that are trained at once.
            waiting: the folders of the jobs that are to be run.
        """
        outcomes: dict[Path, Outcome] = {}
        while waiting:
            left = _only(groups, waiting)
            size = self.max_batch_size or len(left)
            for start in range(0, len(left), size):
                outcomes |= self._launch(left[start : start + size], start)
            folders = [RunFolder(path) for path in waiting if outcomes[path].result is Result.ELSEWHERE]
            waiting = {folder.path for folder in folders if not (folder.locked or folder.finished)}
        return outcomes

    def _launch(self, groups: Sequence[Mapping[Path, Job]], first: int) -> dict[Path, Outcome]:
        overrides = [_overrides(list(group.values())) for group in groups]
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=first)
        except Exception as error:
            # A process that was killed, or a queue that refuses: what the other jobs have done stands in their folders.
            report(error, self.config_name)
            return {path: _left_behind(RunFolder(path), error) for group in groups for path in group}
        return {
            path: outcome
            for group, done in zip(groups, returns, strict=True)
            for path, outcome in zip(group, done.return_value, strict=True)
        }


def _groups(jobs: Mapping[Path, tuple[Job, int]]) -> list[dict[Path, Job]]:
    """Jobs that differ in nothing but the seed together, up to the number that each says; in the order of the first."""
    groups: list[dict[Path, Job]] = []
    open_groups: dict[tuple[object, ...], dict[Path, Job]] = {}
    for path, (job, most) in jobs.items():
        alike = (most, *(override for override in job.overrides if override != f"seed={job.seed}"))
        group = open_groups.get(alike, {})
        if not group or len(group) == most:
            group = open_groups[alike] = {}
            groups.append(group)
        group[path] = job
    return groups


def _only(groups: Sequence[Mapping[Path, Job]], paths: Set[Path]) -> list[dict[Path, Job]]:
    """The groups without the jobs of other folders than these."""
    left = [{path: job for path, job in group.items() if path in paths} for group in groups]
    return [group for group in left if group]


def _overrides(jobs: Sequence[Job]) -> list[str]:
    """The overrides of a job, or of several with the list of their seeds."""
    if len(jobs) == 1:
        return list(jobs[0].overrides)
    seeds = f"seed=[{','.join(str(job.seed) for job in jobs)}]"
    return [seeds if override == f"seed={jobs[0].seed}" else override for override in jobs[0].overrides]


def _left_behind(folder: RunFolder, error: Exception) -> Outcome:
    """How a job ended whose launcher gave up."""
    if folder.finished:
        return Outcome(Result.DONE)
    reason = folder.read_status().get("error")
    return Outcome(Result.FAILED, reason or f"The launcher gave up: {str(error).strip() or type(error).__name__}")


def _summarize(jobs: Mapping[Path, Job], outcomes: Mapping[Path, Outcome]) -> None:
    """Print what became of the jobs.

    Raises:
        MercError: some failed.
    """
    counts = Counter({"finished before": len(jobs) - len(outcomes)})
    counts.update(str(outcome.result) for outcome in outcomes.values())
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    print(f"Sweep of {len(jobs)} jobs: {', '.join(parts) or 'nothing to run'}")
    failed = {path: outcome.error for path, outcome in outcomes.items() if outcome.result is Result.FAILED}
    for path, error in failed.items():
        job = jobs[path]
        print(f"  {job.variant or 'run'}, seed {job.seed} ({path}): {error}")
    if failed:
        raise MercError(f"{len(failed)} of {len(jobs)} jobs failed. The same command tries them again.")
