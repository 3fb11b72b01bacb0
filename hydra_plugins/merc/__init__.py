"""Where Hydra looks for merc's sweeper: it takes plugins from the namespace ``hydra_plugins`` alone.

Every program with Hydra imports this, so what the sweeper needs is imported when it is used.
"""

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ExperimentSweeper(Sweeper):
    """Hands over to :class:`merc.sweeping.sweeper.Sweep`.

    Args:
        max_batch_size: jobs handed to the launcher at a time; None: all.
        threads: CPU threads of every job, which the jobs read themselves; None: what torch takes.
    """

    def __init__(self, max_batch_size: int | None, threads: int | None) -> None:
        self.max_batch_size = max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from merc.sweeping.sweeper import Sweep

        self.own = Sweep(hydra_context, task_function, config, self.max_batch_size)

    def sweep(self, arguments: list[str]) -> None:
        self.own.run(arguments)
