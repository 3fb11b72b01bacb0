"""Tables as Markdown, LaTeX, CSV and on the terminal."""

import csv
import io
import re
from collections.abc import Iterable, Mapping

from rich.table import Table as RichTable
from rich.text import Text

from merc.reporting import statistics
from merc.reporting.report.columns import is_score, unit
from merc.reporting.report.provenance import portable
from merc.reporting.report.runs import EPOCHS
from merc.reporting.report.sections import Section
from merc.reporting.report.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "−": r"$-$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "→": r"$\to$",
    "Σ": r"$\Sigma$",
    "…": r"\dots{}",
    "–": "--",
    "—": "---",
    "’": "'",
    "“": "``",
    "”": "''",
    "\u202f": r"\,",
}


def markdown(tables: Iterable[Table]) -> str:
    """Tables with their titles and notes; published-only rows are in italics."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [f"**{_escaped(table.title)}**", "", _line(map(_escaped, table.columns)), _line(_rule(table))]
    for index, row in enumerate(table.rows):
        texts = [_escaped(cell.text) for cell in row]
        lines.append(_line([f"*{text}*" if text else "" for text in texts] if index in table.theirs else texts))
    return "\n".join([*lines, "", *(f"{_escaped(note)}\n" for note in table.notes)])


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<`])", r"\\\1", text.replace("\n", " "))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(table: Table) -> list[str]:
    return [":---", *["---:"] * (len(table.columns) - 1)]


def latex(table: Table, caption: str, label: str) -> str:
    """A booktabs table, for a document that loads the packages booktabs and graphicx.

    Args:
        table: what it holds.
        caption: the table's.
        label: what the document refers to it by.
    """
    rows = [" & ".join(latex_text(cell.text) for cell in row) + r" \\" for row in table.rows]
    ours = [index for index in range(len(rows)) if index not in table.theirs]
    if ours and max(ours) + 1 < len(rows):
        rows.insert(max(ours) + 1, r"\midrule")
    return "\n".join(
        [
            r"\begin{table}[tb]",
            r"  \centering",
            rf"  \caption{{{latex_text(caption)}}}",
            rf"  \label{{{label}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"    \toprule",
            f"    {' & '.join(map(latex_text, table.columns))} \\\\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}}",
            *(rf"  \par\footnotesize {latex_text(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Text with what LaTeX would take for commands, or does not know, spelt out."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def terminal(table: Table) -> RichTable:
    """A table for the terminal."""
    shown = RichTable(title=Text(table.title), title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        shown.add_row(*[Text(cell.text) for cell in row], style="dim" if index in table.theirs else None)
    return shown


_SCORE_COLUMNS = (
    *("experiment", "data", "corpus", "overrides", "variant", "column", "unit", "epoch"),
    *("seeds", "mean", "sd", "low", "high", "published"),
)


def scores_csv(section: Section) -> str:
    """Every number of a section, one row for each variant, column and epoch, unrounded.

    Ours, their intervals and the published numbers are in the same unit, which stands beside them.
    """
    return _csv(_SCORE_COLUMNS, _score_rows(section))


def _score_rows(section: Section) -> Iterable[dict[str, object]]:
    sweep = section.sweep
    there: dict[str, object] = {
        "experiment": sweep.experiment,
        "data": sweep.data,
        "corpus": sweep.corpus,
        "overrides": " ".join(portable(sweep.overrides)),
    }
    for row in section.rows:
        for column in section.columns:
            for epoch in EPOCHS if is_score(column) else ("",):
                values = row.values(column, epoch or None)
                if not values:
                    continue
                mean, sd = statistics.mean_and_sd(values)
                low, high = row.intervals.get(column, ("", "")) if epoch == row.headline else ("", "")
                printed = section.published.get(row.name, {}).get(column, "")
                numbers = {"seeds": len(values), "mean": mean, "sd": _known(sd), "low": low, "high": high}
                cell = {"variant": row.name, "column": column, "unit": unit(column), "epoch": epoch}
                yield there | cell | numbers | {"published": printed}
    for name in section.only_published:
        for column, value in section.published[name].items():
            yield there | {"variant": name, "column": column, "unit": unit(column), "published": value}


def tests_csv(section: Section) -> str:
    """Every test against the reference, one row for each variant and measure, in points, unrounded."""
    fields = ("difference", "low", "high", "p_runs", "p_variants", "effect")
    rows = (
        {"variant": name, "measure": measure, **{key: _known(getattr(tested, key)) for key in fields}}
        for measure, by_row in section.tests.items()
        for name, tested in by_row.items()
    )
    return _csv(("variant", "measure", *fields), rows)


def _known(number: float) -> float | str:
    return "" if number != number else number


def _csv(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
