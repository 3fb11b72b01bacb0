"""Dashboards at Weights & Biases as code: a workspace and a report for an experiment.

Both show the runs that carry the experiment's tag, grouped by variant, as merc's logger leaves them.
"""

import json
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from merc.data.conversation import MODALITIES
from merc.reporting.report.columns import column_name, in_unit, is_score
from merc.reporting.wandb_account import tag
from merc.sweeping.experiment import Experiment

CURVES = ("validation/weighted_f1", "test/weighted_f1", "train/loss")


def workspace(experiment: Experiment, entity: str, project: str) -> ws.Workspace:
    """The workspace of an experiment: scores, learning curves and balancing state.

    Args:
        experiment: what the runs belong to.
        entity: team or account at Weights & Biases.
        project: its project.
    """
    return ws.Workspace(
        name=f"{experiment.title} ({experiment.name})",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=name, panels=panels, is_open=index < 2)
            for index, (name, panels) in enumerate(_panels(experiment).items())
        ],
        runset_settings=ws.RunsetSettings(filters=_runs_of(experiment), groupby=[expr.Metric("group")]),
    )


def report(experiment: Experiment, entity: str, project: str) -> wr.Report:
    """The report of an experiment: the same panels, with the published numbers and what is wrong with them.

    Args:
        experiment: what the runs belong to.
        entity: team or account at Weights & Biases.
        project: its project.
    """
    blocks: list[Any] = [wr.P(f"After {experiment.source}. Lines and bars: mean over the seeds of a variant, ± sd.")]
    for name, panels in _panels(experiment).items():
        runs = wr.Runset(name=experiment.title, filters=_runs_of(experiment), groupby=["group"])
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    for corpus in experiment.published:
        blocks += [wr.H2(f"Published on {corpus}"), wr.MarkdownBlock(_published(experiment, corpus))]
    if experiment.remarks:
        blocks += [wr.H2("About the published numbers"), wr.UnorderedList(list(experiment.remarks))]
    return wr.Report(entity=entity, project=project, title=experiment.title, description=experiment.name, blocks=blocks)


def specification(experiments: Sequence[Experiment], entity: str, project: str) -> dict[str, Any]:
    """What would be sent to Weights & Biases: experiment → ``workspace`` and ``report``, as plain JSON."""
    return {
        experiment.name: {
            "workspace": _plain(workspace(experiment, entity, project)),
            "report": _plain(report(experiment, entity, project)),
        }
        for experiment in experiments
    }


def _plain(board: Any) -> Any:
    # There is no public way to look at what save() would send.
    return json.loads(board._to_model().model_dump_json(by_alias=True, exclude_none=True))


def _runs_of(experiment: Experiment) -> expr.And:
    """Single runs of the experiment: their own aggregates would count seeds twice."""
    return expr.And(expr.Tags().isin([tag(experiment.name)]), expr.Metric("jobType").notin(["aggregate", "report"]))


def _panels(experiment: Experiment) -> dict[str, list[Any]]:
    """Section → its panels."""
    scores = [column for column in experiment.columns if is_score(column)] or ["weighted_f1"]
    return {
        "Scores": [_bars(f"selected/test/{name}", f"{column_name(name)}, selected epoch") for name in scores],
        "Learning curves": [_curve(name) for name in CURVES],
        "The choice of the epoch": [
            _bars(f"{epoch}/test/{name}", f"{column_name(name)}, {epoch}")
            for name in scores
            for epoch in ("last", "test_best")
        ],
        "Balancing": [_curve(f"balancing/{kind}_{name}") for kind in ("score", "q") for name in MODALITIES],
    }


def _bars(metric: str, title: str) -> wr.BarPlot:
    spread: Any = "stddev"
    return wr.BarPlot(title=title, metrics=[metric], groupby="group", groupby_aggfunc="mean", groupby_rangefunc=spread)


def _curve(metric: str) -> wr.LinePlot:
    grouped: dict[str, Any] = {"groupby": "group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return wr.LinePlot(title=metric, x="epoch", y=[metric], **grouped)


def _published(experiment: Experiment, corpus: str) -> str:
    """The published numbers of one corpus as a Markdown table."""
    rows = experiment.published[corpus]
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [["", *map(column_name, columns)], ["---"] * (len(columns) + 1)]
    for name, cells in rows.items():
        lines.append([name, *(f"{in_unit(column, cells[column])}" if column in cells else "" for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
