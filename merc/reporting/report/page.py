"""One HTML page with everything, which needs nothing beside itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment

from merc.reporting.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PageFigure:
    """A figure on the page: its SVG element, and what stands below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class PageSection:
    """A section of the page.

    Args:
        title: its headline.
        origin: where it comes from, in one line.
        data: the data, in the contents.
        progress: how far it is, in the contents.
        tables: its tables.
        figures: its figures.
        remarks: about the published numbers.
        commands: that make it again.
        facts: how it was made, a sentence each.
    """

    title: str
    origin: str
    data: str
    progress: str
    tables: Sequence[Table]
    figures: Sequence[PageFigure] = ()
    remarks: Sequence[str] = ()
    commands: Sequence[str] = ()
    facts: Sequence[str] = ()


CAPTIONS: Mapping[str, str] = {
    "lines": "Mean over seeds, bars: one standard deviation.",
    "bars": "Mean over seeds, lines: one standard deviation.",
    "heatmap": "Mean over seeds.",
    "confusion": "Test utterances of all seeds, in percent of each true class.",
    "robustness": "Mean over seeds, bars: one standard deviation.",
    "differences": "Difference of the means over seeds with its interval over test dialogues; "
    "grey: not significant for these runs (Holm-adjusted p > 0.05).",
}


def page_figures(figures: Mapping[str, "Figure"], captions: Mapping[str, str] = CAPTIONS) -> list[PageFigure]:
    """Figures as they stand on a page."""
    from merc.reporting.report.figures import inline_svg

    return [PageFigure(inline_svg(figure, name), captions[name]) for name, figure in figures.items()]


def page(title: str, introduction: str, sections: Sequence[PageSection]) -> str:
    """The HTML of a page.

    Args:
        title: of the page.
        introduction: one paragraph below it.
        sections: what follows, with a list of contents if there are several.
    """
    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(source)
    return template.render(title=title, introduction=introduction, sections=sections)
