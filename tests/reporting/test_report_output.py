"""What a report writes: Markdown, LaTeX, CSV, figures and the page."""

import csv
import io
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lab import PUBLISHED, Lab, robustness, section_of, sections_of, table_of
from PIL import Image

from merc.errors import MercError
from merc.reporting.report import render
from merc.reporting.report.figures import INK, inline_svg, section_figures, write_figure
from merc.reporting.report.tables import Cell, Table, section_tables
from merc.reporting.report.write import write_report

HOSTILE = 'a|b_{c}% & "d" <script>alert(1)</script> $x$ \\textbf ~^#`*'


def hostile_table() -> Table:
    rows = [[Cell(HOSTILE), Cell("1.00 ± 0.10", 1.0)], [Cell("theirs"), Cell("−2.00", -2.0)]]
    return Table("scores", HOSTILE, ["variant", HOSTILE], rows, {1}, [HOSTILE])


def test_markdown_keeps_its_columns_whatever_the_names() -> None:
    lines = [line for line in render.markdown([hostile_table()]).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "*theirs*" in lines[3]


def test_latex_keeps_its_columns_whatever_the_names() -> None:
    text = render.latex(hostile_table(), HOSTILE, "tab:x")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1, 1]
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")
def test_latex_compiles(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6}, published=PUBLISHED)
    tables = [*section_tables(section_of(lab)), hostile_table()]
    body = "\n".join(render.latex(table, table.title, f"tab:{index}") for index, table in enumerate(tables))
    packages = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}"
    (tmp_path / "all.tex").write_text(rf"{packages}\begin{{document}}{body}\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-2000:]


def test_csv_holds_every_number_unrounded(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6}, published=PUBLISHED)
    section = section_of(lab)
    rows = list(csv.DictReader(io.StringIO(render.scores_csv(section))))
    ours = {(row["variant"], row["column"], row["epoch"]): row for row in rows if row["epoch"]}
    assert len(ours) == 2 * 2 * 3
    for row in section.rows:
        for epoch in ("selected", "last", "test_best"):
            values = row.values("weighted_f1", epoch)
            there = ours[row.name, "weighted_f1", epoch]
            assert float(there["mean"]) == pytest.approx(np.mean(values), abs=1e-12)
            assert float(there["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert bool(there["low"]) == (epoch == "selected")
    theirs = [(row["variant"], row["column"], row["published"]) for row in rows if not row["epoch"]]
    assert ("DialogueRNN", "wa_acc", "60.25") in theirs
    (tested,) = [r for r in csv.DictReader(io.StringIO(render.tests_csv(section))) if r["measure"] == "weighted_f1"]
    assert float(tested["difference"]) == section.tests["weighted_f1"]["text"].difference


AXES = {"x": {"label": "window", "values": {"w1": 1, "w9": 9, "w5": 5}}}
GRID = {
    "x": {"label": "q", "values": {"a": 0.1, "b": 0.1, "c": 0.3}},
    "y": {"label": "p", "values": {"a": 0.2, "b": 0.4, "c": 0.2}},
}


def draw(lab: Lab, name: str) -> dict[str, list[float]]:
    """Panel → the heights of what is drawn there, in order."""
    figure = section_figures(section_of(lab))[name]
    drawn = {}
    for panel in figure.axes:
        containers = [container.lines[0] for container in panel.containers if hasattr(container, "lines")]
        drawn[panel.get_ylabel()] = [float(y) for line in containers for y in line.get_ydata()]
    return drawn


def test_lines_go_through_the_means(lab: Lab) -> None:
    lab.grid("mine/figure", {"w1": 0.3, "w5": 0.5, "w9": 0.7}, kind="lines", axes=AXES, reference=None)
    section = section_of(lab)
    assert draw(lab, "lines")["weighted F1 (%)"] == [np.mean(row.values("weighted_f1")) for row in section.rows]


def test_bars_are_as_high_as_the_means(lab: Lab) -> None:
    lab.grid("mine/figure", {"none": 0.3, "all": 0.5}, kind="bars", published=PUBLISHED)
    section = section_of(lab)
    panel = section_figures(section)["bars"].axes[1]
    heights = [patch.get_y() + patch.get_height() for patch in panel.patches]
    assert heights == pytest.approx([np.mean(row.values("weighted_f1")) for row in section.rows])
    (printed,) = [line for line in panel.lines if line.get_label() == "published"]
    assert [y for y in printed.get_ydata() if not math.isnan(y)] == [66.18]


def test_a_heatmap_has_every_variant_in_its_place(lab: Lab) -> None:
    published = {"meld": {"b": {"weighted_f1": 65.0}}}
    lab.grid(
        "mine/figure", {"a": 0.3, "b": 0.5, "c": 0.7}, kind="heatmap", axes=GRID, reference=None, published=published
    )
    section = section_of(lab)
    ours, printed = section_figures(section)["heatmap"].axes
    means = {row.name: np.mean(row.values("weighted_f1")) for row in section.rows}
    expected = [[means["a"], means["c"]], [means["b"], math.nan]]
    np.testing.assert_allclose(np.ma.filled(ours.images[0].get_array(), math.nan), expected)
    assert [text.get_text() for text in printed.texts] == ["65.00"]


def test_confusion_matrices_are_shares_of_each_class(lab: Lab) -> None:
    lab.grid("mine/figure", {"all": 0.5}, kind="confusion")
    (panel,) = section_figures(section_of(lab))["confusion"].axes
    counts = np.zeros((3, 3))
    for seed in (1, 2, 3):
        np.add.at(counts, (lab.labels, lab.predict(0.5, seed)), 1)
    np.testing.assert_allclose(panel.images[0].get_array(), 100 * counts / counts.sum(1, keepdims=True))


def test_curves_under_noise_go_through_the_means(lab: Lab) -> None:
    lab.experiment("mine/figure", kind="robustness", columns=["weighted_f1"])
    for seed in (1, 2):
        lab.run(f"a/seed={seed}", seed=seed, robustness=robustness(0.6 + 0.02 * seed))
    lab.sweep("mine/figure", [lab.job("all", seed, f"a/seed={seed}") for seed in (1, 2)])
    figure = section_figures(section_of(lab))["robustness"]
    panels = {panel.get_title(): panel.containers[0].lines[0] for panel in figure.axes}
    assert list(panels["noise on text+audio"].get_ydata()) == pytest.approx([63.0, 58.0])
    assert list(panels["noise on text+audio"].get_xdata()) == [0.0, 0.5]
    assert list(panels["missing modalities"].get_ydata()) == pytest.approx([63.0, 33.0])


def test_figures_are_the_same_bytes_again_and_fit_to_print(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6})
    for name in ("one", "two"):
        write_figure(section_figures(section_of(lab))["differences"], tmp_path / name)
    for suffix in (".png", ".pdf"):
        one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two
    assert b"/Type3" not in (tmp_path / "one.pdf").read_bytes()
    assert round(Image.open(tmp_path / "one.png").info["dpi"][0]) == 200


def test_a_figure_on_a_page_takes_the_colour_of_its_text(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6})
    svg = inline_svg(section_figures(section_of(lab))["differences"], "differences")
    root = ElementTree.fromstring(svg)  # noqa: S314  # our own
    assert root.get("role") == "img"
    assert INK not in svg
    assert "currentColor" in svg
    assert not root.findall(".//{*}metadata")


def test_without_matplotlib_the_way_out_is_named(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.grid("mine/table", {"all": 0.6}, seeds=(1,))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MercError, match=r"pip install 'merc\[report\]'.*figures=false"):
        write_report(sections_of(lab), tmp_path / "out")
    assert write_report(sections_of(lab), tmp_path / "out", figures=False).is_file()


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what a page would load."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_itself(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/figure", {"w1": 0.3, "w5": 0.5, "w9": 0.7}, kind="lines", axes=AXES, reference="w5", title=HOSTILE)
    lab.grid("mine/table", {"text": 0.4, "all": 0.6}, published=PUBLISHED, remarks=[HOSTILE])
    target = write_report(sections_of(lab), tmp_path / "out")
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith("#") for link in page.loads)
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("script") == 1, "text of the user's became code"
    assert page.tags.count("svg") == 3
    assert page.tags.count("table") == 7


def test_every_section_leaves_its_files(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/figure", {"none": 0.3, "all": 0.5}, kind="bars")
    section = section_of(lab)
    write_report([section], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / section.key).iterdir()}
    tables = {"scores.tex", "epochs.tex", "tests.tex", "report.md", "scores.csv", "tests.csv"}
    assert names == tables | {"bars.png", "bars.pdf", "differences.png", "differences.pdf"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_a_click_on_a_column_sorts_by_its_numbers(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/table", {"b": 0.5, "c": 0.3, "all": 0.7}, seeds=(1,), published=PUBLISHED)
    target = write_report(sections_of(lab), tmp_path / "out", figures=False)
    scores = table_of(section_of(lab))
    column = scores.columns.index("weighted F1")
    click = f"<script>document.querySelectorAll('th button')[{column}].click()</script>"
    page = tmp_path / "clicked.html"
    page.write_text(target.read_text(encoding="utf-8").replace("</body>", f"{click}</body>"), encoding="utf-8")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    command = ["chromium", *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    body = dom[dom.index("<tbody>") : dom.index("</tbody>")]
    names = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<tr[^>]*><td[^>]*>.*?</td>", body)]
    assert names == ["c", "b", "all (reference)", "DialogueRNN (published only)"], "empty cells come last"
