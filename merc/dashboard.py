"""``python -m merc.dashboard``: a workspace and a report at Weights & Biases for each experiment."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from merc.errors import MercError
from merc.files import write_json
from merc.reporting.wandb_account import has_account
from merc.sweeping.experiment import Experiment, experiment_names, read_experiment


def dashboard(experiments: Sequence[Experiment], entity: str, project: str, dry_run: Path | None = None) -> None:
    """Create the workspace and the report of experiments, or write down what would be created.

    Args:
        experiments: for each of which there will be both.
        entity: team or account at Weights & Biases.
        project: its project.
        dry_run: where to write the specification, in place of creating anything; None: create.

    Raises:
        MercError: wandb-workspaces is not installed, there is no account here, or the service refuses.
    """
    try:
        from merc.reporting import dashboards
    except ModuleNotFoundError as error:
        raise MercError("Dashboards need wandb-workspaces. Install it: pip install 'merc[dashboard]'.") from error
    if dry_run is not None:
        write_json(dry_run, dashboards.specification(experiments, entity, project))
        print(f"The specification of {len(experiments)} workspaces and reports: {dry_run}")
        return
    if not has_account():
        raise MercError("There is no account of Weights & Biases here. Run wandb login, or look first with --dry-run.")
    for experiment in experiments:
        _create(dashboards.workspace(experiment, entity, project), dashboards.report(experiment, entity, project))


def _create(*boards: object) -> None:
    import wandb

    for board in boards:
        try:
            board.save()  # type: ignore[attr-defined]
        except (wandb.errors.Error, ValueError) as error:
            raise MercError(f"Weights & Biases refuses: {error} Check --entity and --project.") from error
        print(board.url)  # type: ignore[attr-defined]


def main() -> None:
    """The command."""
    arguments = _parser().parse_args()
    try:
        names = arguments.experiments or experiment_names(arguments.config_dir)
        experiments = [read_experiment(name, arguments.config_dir) for name in names]
        target = Path(arguments.out) if arguments.dry_run else None
        dashboard(experiments, arguments.entity, arguments.project, target)
    except MercError as error:
        sys.exit(f"Error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m merc.dashboard",
        description="A workspace and a report at Weights & Biases for each experiment, from the runs logged there.",
    )
    parser.add_argument("experiments", nargs="*", help="such as amb_dsgdn/table4_modalities; none: all")
    parser.add_argument("--entity", required=True, help="team or account at Weights & Biases")
    parser.add_argument("--project", default="merc", help="project of the runs (default: merc)")
    parser.add_argument("--config-dir", type=Path, help="folder with an experiment/ of your own")
    parser.add_argument("--dry-run", action="store_true", help="write what would be created, as JSON; needs no account")
    parser.add_argument("--out", default="dashboards.json", help="file of --dry-run (default: dashboards.json)")
    return parser


if __name__ == "__main__":
    main()
