"""From sweeps to files: what ``python -m merc.report`` does."""

from collections.abc import Callable, Sequence
from pathlib import Path

from merc.files import write_text
from merc.reporting.report import render
from merc.reporting.report.page import CAPTIONS, PageSection, page, page_figures
from merc.reporting.report.provenance import commands, facts, portable
from merc.reporting.report.runs import Run
from merc.reporting.report.sections import Sampling, Section
from merc.reporting.report.tables import section_tables
from merc.sweeping.experiment import experiment_names, read_experiment
from merc.sweeping.manifest import Manifest, read_sweeps


def read_sections(
    run_root: Path,
    names: Sequence[str] = (),
    config_dir: Path | None = None,
    sampling: Sampling | None = None,
    skipped: Callable[[str], object] = lambda reason: None,
) -> list[Section]:
    """The sections of the chosen experiments, in the order of their names; a run that several share is read once.

    Args:
        run_root: folder of the run folders.
        names: experiments, or folders of experiments; none: all that were started.
        config_dir: folder with an ``experiment/`` of the user's own.
        sampling: how the statistics are drawn.
        skipped: is told the reason for every experiment that is left out because it has no file, which happens only
            without ``names`` and beside others that have one.

    Raises:
        MercError: there is no such sweep or experiment, or a file is damaged.
    """
    sweeps = read_sweeps(run_root, names)
    if not names:
        sweeps = _with_a_file(sweeps, config_dir, skipped)
    runs = {name: Run(run_root / name) for name in {job.run for sweep in sweeps for job in sweep.jobs}}
    experiments = {name: read_experiment(name, config_dir) for name in {sweep.experiment for sweep in sweeps}}
    return [Section(experiments[sweep.experiment], sweep, sampling or Sampling(), runs, run_root) for sweep in sweeps]


def _with_a_file(sweeps: list[Manifest], config_dir: Path | None, skipped: Callable[[str], object]) -> list[Manifest]:
    """The sweeps of experiments that have a file; all where none has, so that reading them says so."""
    there = set(experiment_names(config_dir))
    kept = [sweep for sweep in sweeps if sweep.experiment in there]
    if not kept:
        return sweeps
    for name in dict.fromkeys(sweep.experiment for sweep in sweeps if sweep.experiment not in there):
        skipped(
            f"There is no experiment '{name}'. If it is one of your own, say where: config_dir=FOLDER, which holds "
            "experiment/."
        )
    return kept


def write_report(sections: Sequence[Section], out: Path, figures: bool = True) -> Path:
    """Write the files of every section and the page with all of them.

    A section's are ``<out>/<experiment>/<data>-<hash>/``: ``report.md``, ``scores.csv``, ``tests.csv``, a ``.tex`` for
    each table, a ``.png`` and a ``.pdf`` for each figure.

    Args:
        sections: what to write.
        out: folder.
        figures: draw them too.

    Returns:
        the path of report.html.

    Raises:
        MercError: matplotlib is not installed, or a file cannot be written.
    """
    target = out / "report.html"
    pages = [_write_section(section, out, figures) for section in sections]
    introduction = (
        "Scores are those of the test split in percent, at the epoch that validation chose unless a table says "
        "otherwise. Click on a column to sort by it."
    )
    write_text(target, page("Experiments", introduction, pages))
    return target


def _write_section(section: Section, out: Path, figures: bool) -> PageSection:
    folder, experiment, tables, drawn = out / section.key, section.experiment, section_tables(section), {}
    if figures:
        from merc.reporting.report.figures import section_figures, write_figure

        drawn = section_figures(section)
        for name, figure in drawn.items():
            write_figure(figure, folder / name)
    for table in tables:
        caption = f"{experiment.title} ({experiment.source}), {section.sweep.data}. {table.title}."
        write_text(folder / f"{table.name}.tex", render.latex(table, caption, f"tab:{section.key}:{table.name}"))
    write_text(folder / "scores.csv", render.scores_csv(section))
    if section.tests:
        write_text(folder / "tests.csv", render.tests_csv(section))
    content = PageSection(
        title=experiment.title,
        origin=origin(section),
        data=section.sweep.data,
        progress=progress(section),
        tables=tables,
        figures=page_figures(drawn),
        remarks=section.remarks,
        commands=commands(section, out),
        facts=facts(section),
    )
    write_text(folder / "report.md", _markdown(content, list(drawn)))
    return content


def _markdown(content: PageSection, figures: Sequence[str]) -> str:
    """A section on its own: what the page shows, with the figures beside the file."""
    parts = [f"# {content.title}\n", f"{content.origin}\n", render.markdown(content.tables)]
    parts += [f"![{name}]({name}.png)\n\n{CAPTIONS[name]}\n" for name in figures]
    if content.remarks:
        parts += ["## About the published numbers\n", *(f"- {remark}" for remark in content.remarks), ""]
    parts += ["## How it was made\n", "```bash", *content.commands, "```\n", *(f"- {fact}" for fact in content.facts)]
    return "\n".join([*parts, ""])


def origin(section: Section) -> str:
    """Experiment, paper, data, overrides and how far it is, in one line."""
    overrides = f" Overrides: {' '.join(portable(section.sweep.overrides))}." if section.sweep.overrides else ""
    return (
        f"{section.experiment.name}, after {section.experiment.source}; data {section.sweep.data}, "
        f"{progress(section)}.{overrides}"
    )


def progress(section: Section) -> str:
    """``12 of 15 runs``."""
    planned = sum(len(row.runs) for row in section.rows)
    return f"{planned - len(section.states())} of {planned} runs"
