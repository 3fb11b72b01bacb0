"""``python -m merc.report``: the tables and figures of experiments, from their run folders.

python -m merc.report                                       every experiment that was started
python -m merc.report amb_dsgdn/table4_modalities redifu    this one, and all of redifu/
python -m merc.report out=docs/results run_root=runs
python -m merc.report compare RUN_A RUN_B                   two run folders side by side
python -m merc.report compare RUN_A RUN_B attention=ID      … and what they attend to in a dialogue; needs torch
"""

from pathlib import Path
from typing import Any

from merc.arguments import run
from merc.errors import MercError
from merc.reporting.report.attention import AttentionPair, attention_pair
from merc.reporting.report.compare import Pair, comparison_tables, read_pair, write_comparison
from merc.reporting.report.render import terminal
from merc.reporting.report.sections import Sampling, Section
from merc.reporting.report.tables import section_tables
from merc.reporting.report.write import origin, read_sections, write_report
from merc.reporting.tables import show


def report(names: list[str], settings: dict[str, Any]) -> Path:
    """Write tables, figures and the page, and print the first table of each experiment.

    Args:
        names: experiments, or folders of experiments; none: all that were started and have a file.
        settings: those of conf/report.yaml.

    Returns:
        the path of report.html.

    Raises:
        MercError: there is nothing to report, a file is damaged, or the report cannot be written.
    """
    if settings["attention"] is not None:
        raise MercError("attention=… is for two runs: python -m merc.report compare RUN_A RUN_B attention=DIALOGUE_ID")
    config_dir = settings["config_dir"]
    own, skipped = Path(config_dir) if config_dir is not None else None, list[str]()
    sections = read_sections(Path(settings["run_root"]), names, own, _sampling(settings), skipped.append)
    out = Path(settings["out"])
    target = write_report(sections, out, settings["figures"])
    if settings["wandb"]:
        from merc.reporting.report.wandb_runs import log_sections

        log_sections(sections, out, settings["wandb_project"], settings["wandb_entity"], settings["wandb_mode"])
    for section in sections:
        _print(section)
    for reason in skipped:
        print(f"Skipped: {reason}")
    print(f"Everything: {target}")
    return target


def compare(folders: list[str], settings: dict[str, Any]) -> Path:
    """Write and print what sets two runs apart.

    Args:
        folders: two run folders.
        settings: those of conf/report.yaml.

    Returns:
        the path of compare.html.

    Raises:
        MercError: these are no two run folders, a file is damaged, or the comparison cannot be written.
    """
    if len(folders) != 2:
        raise MercError("compare takes two run folders: python -m merc.report compare RUN_A RUN_B")
    pair = read_pair(Path(folders[0]), Path(folders[1]), _sampling(settings))
    target = write_comparison(pair, Path(settings["out"]), settings["figures"], _attention(pair, settings))
    for table in comparison_tables(pair):
        show(terminal(table))
        print("\n".join([*table.notes, ""]))
    print(f"Everything: {target}")
    return target


def _attention(pair: Pair, settings: dict[str, Any]) -> AttentionPair | None:
    if settings["attention"] is None:
        return None
    plugins = [name for name in (settings["plugins"] or "").strip("[]").split(",") if name]
    return attention_pair(pair, settings["attention"], plugins)


def _print(section: Section) -> None:
    table = section_tables(section)[0]
    print(f"{section.experiment.title}\n{origin(section)}")
    show(terminal(table))
    remarks = ["About the published numbers:", *(f"- {text}" for text in section.remarks)] if section.remarks else []
    print("\n".join([*table.notes, *remarks, ""]))


def _sampling(settings: dict[str, Any]) -> Sampling:
    if settings["resamples"] < 1:
        raise MercError(f"resamples={settings['resamples']} is no number of resamples. Choose 1 or more.")
    if not 0 < settings["level"] < 1:
        raise MercError(
            f"level={settings['level']} is no level of confidence. Choose one between 0 and 1, such as 0.95."
        )
    return Sampling(settings["resamples"], settings["level"], settings["seed"])


def main() -> None:
    """The command."""
    run(_report_or_compare, __doc__ or "", "report")


def _report_or_compare(names: list[str], settings: dict[str, Any]) -> None:
    if names[:1] == ["compare"]:
        compare(names[1:], settings)
    else:
        report(names, settings)


if __name__ == "__main__":
    main()
