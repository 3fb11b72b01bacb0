"""From the arguments of a multirun to its jobs: variants × seeds × what the command line sweeps."""

import copy
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from merc.cli import check_overrides, explain, refuse_no_choices
from merc.config import expand_choices
from merc.errors import MercError
from merc.reporting.run_folder import BESIDES_THE_RUN, run_name, run_path
from merc.sweeping.experiment import Experiment, parse_experiment
from merc.sweeping.manifest import Job, Manifest

SMOKE = "smoke"
"""The choice of ``trainer`` that reduces experiments."""


@dataclass(frozen=True)
class Plan:
    """The jobs of one experiment, or of none, with one choice of everything else that the command line sweeps.

    Args:
        run_root: folder of the run folders.
        overwrite: run what is finished once more.
        seeds_per_process: most seeds of one configuration that are trained at once.
        manifest: None without an experiment.
        jobs: variant by variant, each with its seeds.
    """

    run_root: Path
    overwrite: bool
    seeds_per_process: int
    manifest: Manifest | None
    jobs: Sequence[Job]


class Planner:
    """Expands the arguments of a multirun.

    Args:
        loader: Hydra's, which composes configurations.
        master: the configuration of the multirun itself.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self.config_name = str(master.hydra.job.config_name)

    def expand(self, arguments: Sequence[str]) -> list[Plan]:
        """The plans of a multirun, in the order of the command line.

        Args:
            arguments: the task overrides, sweeps among them.

        Raises:
            MercError: an experiment, a variant or an override is wrong, or a ``run_dir`` would hold several runs.
        """
        choices = {_key(override): _alternatives(override) for override in self._parse(arguments)}
        experiments = choices.pop("experiment", [""])
        seeds = [_seed(choice) for choice in choices.pop("seed", [])]
        plans = [
            self._plan([experiment] if experiment else [], list(common), seeds)
            for experiment in experiments
            for common in itertools.product(*choices.values())
        ]
        if "run_dir" in choices:
            _refuse_shared_folders(plans)
        return plans

    def _plan(self, choice: list[str], common: list[str], seeds: list[int]) -> Plan:
        """The jobs of an experiment, or one for each seed where none is chosen.

        Args:
            choice: the override that chooses an experiment, if any.
            common: the other overrides of the command line.
            seeds: those of the command line, which replace the experiment's.
        """
        base = self._compose([*choice, *common])
        run_root, together = Path(base.run_root), _seeds_per_process(base)
        experiment = _experiment(base)
        if experiment is None:
            return Plan(run_root, base.overwrite, together, None, self._jobs("", [*choice, *common], base, seeds))
        jobs = [
            job
            for variant in experiment.variants
            for job in self._variant(experiment, variant, choice, common, seeds or list(experiment.seeds))
        ]
        overrides = [override for override in common if _sets_apart(override)]
        if seeds:
            overrides.append(f"seed={','.join(map(str, seeds))}")
        if base.variants is not None:
            overrides.append(f"variants=[{','.join(base.variants)}]")
        data, corpus = base.hydra.runtime.choices.data, base.corpus.name
        manifest = Manifest(experiment.name, data, corpus, overrides, jobs)
        return Plan(run_root, base.overwrite, together, manifest, jobs)

    def _variant(
        self, experiment: Experiment, variant: str, choice: list[str], common: list[str], seeds: list[int]
    ) -> list[Job]:
        taken = {_key(override) for override in self._parse(common)}
        try:
            refuse_no_choices(expand_choices(experiment.variants[variant]))
            own = self._parse(expand_choices(experiment.variants[variant]))
            kept = [str(override.input_line) for override in own if _key(override) not in taken]
            overrides = [*choice, *kept, *common]
            return self._jobs(variant, overrides, self._compose(overrides), seeds)
        except (MercError, HydraException, OmegaConfBaseException) as error:
            reason = explain(error, self.config_name)
            raise MercError(f"Experiment {experiment.name}, variant '{variant}': {reason}") from error

    def _jobs(self, variant: str, overrides: list[str], config: DictConfig, seeds: list[int]) -> list[Job]:
        """The runs of one configuration: one for each seed, or for its own seed alone."""
        chosen = config.hydra.runtime.choices
        cfg = _without_hydra(config)
        check_overrides(cfg, overrides, chosen, self.config_name)
        resume = [] if cfg.overwrite or cfg.resume else ["resume=true"]
        if not seeds:
            return [Job(variant, cfg.seed, [*overrides, *resume], _folder(cfg, chosen))]
        jobs = []
        for seed in seeds:
            cfg.seed = seed
            jobs.append(Job(variant, seed, [*overrides, f"seed={seed}", *resume], _folder(cfg, chosen)))
        return jobs

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.master, overrides)

    def _parse(self, overrides: Sequence[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))


def _key(override: Override) -> str:
    """What an override sets, whether it adds, changes or deletes it."""
    return str(override.get_key_element()).lstrip("+~")


def _alternatives(override: Override) -> list[str]:
    """The overrides among which a sweep chooses; an override that is no sweep alone."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise MercError(f"'{override.input_line}' has no end. List the values: {_key(override)}=a,b,c.")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _sets_apart(override: str) -> bool:
    """Whether an override makes another sweep; the data has its own place in a manifest."""
    return not override.startswith("data=") and re.split(r"[.=]", override.lstrip("+"))[0] not in BESIDES_THE_RUN


def _seed(override: str) -> int:
    value = override.partition("=")[2]
    if not value.isdigit():
        raise MercError(f"seed={value} is not a whole number, which is needed there.")
    return int(value)


def _seeds_per_process(base: DictConfig) -> int:
    number = base.seeds_per_process
    if type(number) is not int or number < 1:
        raise MercError(f"seeds_per_process={number}: give a whole number of at least 1.")
    return number


def _folder(cfg: DictConfig, choices: Mapping[str, Any]) -> str:
    """The run folder, as a path from the folder of the run folders."""
    return os.path.relpath(run_path(cfg, run_name(choices)), cfg.run_root)


def _without_hydra(config: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(config)
    OmegaConf.set_readonly(cfg, False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _experiment(base: DictConfig) -> Experiment | None:
    """The experiment in a composed configuration, reduced to what trainer and ``variants`` say; None: there is none."""
    if "experiment" not in base:
        if base.variants is not None:
            raise MercError("variants=… chooses among those of an experiment: add experiment=….")
        return None
    node: Mapping[str, Any] = OmegaConf.to_container(base.experiment, resolve=True)  # type: ignore[assignment]
    choices = base.hydra.runtime.choices
    experiment = parse_experiment(node, choices.experiment)
    if choices.trainer == SMOKE:
        experiment = experiment.reduced()
    return experiment if base.variants is None else experiment.only(base.variants)


def _refuse_shared_folders(plans: Sequence[Plan]) -> None:
    runs = [os.path.normpath(plan.run_root / job.run) for plan in plans for job in plan.jobs]
    if len(set(runs)) < len(runs):
        raise MercError(
            f"With this run_dir, {runs[0]} would hold several runs. Leave it out: every run has a folder of its own."
        )
