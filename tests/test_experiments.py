"""Every experiment composes for every variant, and publishes what its paper prints, faults included."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from merc.combinations import refuse_contradictions
from merc.config import compose, plain
from merc.data.conversation import CorpusInfo
from merc.data.corpora import CORPORA
from merc.models.build import build_model, build_objective
from merc.models.costs import published_model
from merc.models.emotion_model import count_parameters
from merc.ranges import refuse_out_of_range

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
KINDS = ("table", "lines", "bars", "heatmap", "confusion", "corpora", "costs", "robustness")
KEYS = {"name", "title", "source", "kind", "seeds", "reference", "columns", "variants", "published", "remarks", "smoke"}
PAPER = ROOT.parent / "shared" / "spec" / "amb_dsgdn_paper.txt"

Numbers = dict[str, list[float]]


def read(name: str) -> dict[str, Any]:
    """The node ``experiment`` of a file."""
    content = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert isinstance(content, dict)
    node = content["experiment"]
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def composed(name: str, corpus: str, overrides: list[str]) -> dict[str, Any]:
    """The plain configuration of a variant, as its run has it."""
    config = plain(compose([f"experiment={name}", f"data=synthetic_{corpus}", *overrides]))
    assert config.pop("experiment")["name"] == name
    return config


def rows_of(node: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Corpus, row and columns of all published values."""
    for corpus, rows in node["published"].items():
        for row, columns in rows.items():
            yield corpus, row, columns


def remark_parts(remark: str) -> tuple[str, str | None, str]:
    """``corpus/row: what is wrong`` in its three parts; the row may be missing, the corpus be "all"."""
    match = re.fullmatch(r"(\w+)(?:/([^:]+))?: (.+)", remark)
    assert match, remark
    return match[1], match[2], match[3]


def remarked(node: Mapping[str, Any], words: str) -> dict[tuple[str, str | None], str]:
    """(corpus, row) → remark, of the remarks that have these words."""
    parts = [remark_parts(remark) for remark in node["remarks"]]
    return {(corpus, row): text for corpus, row, text in parts if words in text}


@pytest.mark.parametrize("name", NAMES)
def test_what_an_experiment_says_fits_together(name: str) -> None:
    node = read(name)
    variants = node["variants"]
    assert KEYS <= node.keys() <= KEYS | {"axes"}
    assert node["name"] == name
    assert node["kind"] in KINDS
    assert node["reference"] in (*variants, None)
    assert set(node["smoke"].get("variants", ())) <= variants.keys()
    assert len(node["smoke"]["seeds"]) == 1
    assert set(node["published"]) <= set(CORPORA)
    assert all(isinstance(value, int | float) for _, _, columns in rows_of(node) for value in columns.values())
    for remark in node["remarks"]:
        corpus, row, _ = remark_parts(remark)
        assert corpus in ("all", *CORPORA)
        rows = {row for _, row, _ in rows_of(node)} | variants.keys()
        assert row is None or row in rows, remark


def test_the_documentation_lists_every_experiment_with_its_runs() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    listed = {name: int(runs) for name, runs in re.findall(r"^\| `(\S+)` \| [^|]+ \| (\d+) \|", text, re.MULTILINE)}
    assert listed == {name: len(read(name)["variants"]) * len(read(name)["seeds"]) for name in NAMES}


@pytest.mark.parametrize("name", [name for name in NAMES if "axes" in read(name)])
def test_axes_place_every_variant(name: str) -> None:
    node = read(name)
    for axis in node["axes"].values():
        assert axis.keys() == {"label", "values"}
        assert list(axis["values"]) == list(node["variants"])
    places = list(zip(*(axis["values"].values() for axis in node["axes"].values()), strict=True))
    assert len(set(places)) == len(places), "two variants at one place"


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_a_model_of_its_own(name: str, corpus: str) -> None:
    node = read(name)
    variants = {variant: composed(name, corpus, said) for variant, said in node["variants"].items()}
    for config in variants.values():
        refuse_contradictions(config)
        refuse_out_of_range(config)
        facts = CORPORA[corpus]
        info = CorpusInfo(
            dims={modality: facts.dims[modality] for modality in config["data"]["modalities"]},
            label_names=facts.label_names,
            speaker_slots=facts.speaker_slots,
            class_counts=facts.splits["train"].class_counts,
        )
        with torch.device("meta"):
            build_model(config, info)
            build_objective(config, info)
    # An override without effect, such as a stage's choice that the method overrules, would give a twin. Two curves may
    # have a point in common.
    curve = node.get("axes", {}).get("series", {}).get("values", dict.fromkeys(variants))
    twins = [(a, b) for a, b in combinations(variants, 2) if variants[a] == variants[b] and curve[a] == curve[b]]
    assert not twins


def test_experiments_share_the_runs_of_the_full_model() -> None:
    full = plain(compose(["data=synthetic_meld", "model=amb_dsgdn"]))
    full.pop("experiment", None)
    sharing = {
        "amb_dsgdn/table1_datasets": "full",
        "amb_dsgdn/table3_meld": "amb_dsgdn",
        "amb_dsgdn/table4_modalities": "text+audio+visual",
        "amb_dsgdn/table6_balancing": "full",
        "amb_dsgdn/table7_base_execute_meld": "q20_p20",
        "amb_dsgdn/table8_overhead": "full",
        "amb_dsgdn/fig3_window": "w6",
        "amb_dsgdn/fig4_heads": "graph_2",
        "amb_dsgdn/fig5_warmup_meld": "warmup_0",
        "amb_dsgdn/fig7_noise": "amb_dsgdn",
    }
    for name, variant in sharing.items():
        assert composed(name, "meld", read(name)["variants"][variant]) == full, name


# What the published rows say about themselves


TOTALS = {"recall": "accuracy", "precision": "weighted_precision", "acc": "wa_acc"}
"""What the paper's "ACC" of a class may be, and its "wa-ACC" with it; "acc" where it cannot be told."""
MAIN = {"iemocap": "amb_dsgdn/table2_iemocap", "meld": "amb_dsgdn/table3_meld"}


def supports(corpus: str) -> np.ndarray:
    return np.array(CORPORA[corpus].splits["test"].class_counts)


def cells(corpus: str, columns: Mapping[str, Any], column: str) -> np.ndarray:
    """The values of the classes, in id order."""
    return np.array([columns[f"{column}/{label}"] for label in CORPORA[corpus].label_names])


def measure(columns: Mapping[str, Any]) -> str:
    """What the paper's "ACC" of the classes is in a row."""
    (found,) = TOTALS.keys() & {column.split("/")[0] for column in columns}
    return found


@pytest.mark.parametrize("corpus", MAIN)
def test_totals_follow_from_the_classes_but_where_a_remark_says_so(corpus: str) -> None:
    node = read(MAIN[corpus])
    faulty = set()
    for _, row, columns in rows_of(node):
        acc = measure(columns)
        for total, column in ((columns[TOTALS[acc]], acc), (columns["weighted_f1"], "f1")):
            mean = np.average(cells(corpus, columns, column), weights=supports(corpus))
            if abs(mean - total) > 0.0101:  # half a unit of the last digit in the classes, as much in the total
                faulty.add(row)
                text = remarked(node, "do not follow")[corpus, row]
                assert f"{total:.2f}" in text
                assert f"{mean:.2f}" in text
    assert {row for _, row in remarked(node, "do not follow")} == faulty


@pytest.mark.parametrize("corpus", MAIN)
def test_the_measure_of_each_row_is_the_one_that_its_numbers_allow(corpus: str) -> None:
    of_classes = supports(corpus)
    for _, row, columns in rows_of(read(MAIN[corpus])):
        acc, f1 = cells(corpus, columns, measure(columns)), cells(corpus, columns, "f1")
        counts = acc * of_classes / 100
        is_recall = np.abs(np.round(counts) / of_classes * 100 - acc).max() < 0.0101
        is_precision = [precision_fits(a, f, n, of_classes.sum()) for a, f, n in zip(acc, f1, of_classes, strict=True)]
        assert is_recall == (measure(columns) == "recall"), row
        unexplained = {"precision": 1 if row == "GraphCFC" else 0}.get(measure(columns))
        if unexplained is not None:
            assert is_precision.count(False) == unexplained, row


def precision_fits(precision: float, f1: float, support: int, utterances: int) -> bool:
    """Whether some counts of correct and of predicted utterances give both values, rounded to two decimals."""
    correct = np.arange(support + 1)[:, None]
    predicted = np.arange(1, utterances + 1)
    fits = np.abs(100 * correct / predicted - precision) < 0.00501
    fits &= np.abs(200 * correct / (predicted + support) - f1) < 0.00501
    return bool((fits & (correct <= predicted)).any())


def test_remark_on_an_f1_beside_its_other_half() -> None:
    node = read(MAIN["meld"])
    columns = node["published"]["meld"]["MERC-PLTAF"]
    f1, acc = columns["f1/joy"], columns["acc/joy"]
    assert f"{1 / (2 / f1 - 1 / acc):.0f} percent" in remarked(node, "joy")["meld", "MERC-PLTAF"]


def test_remarks_on_the_sums_of_table_1() -> None:
    node = read("amb_dsgdn/table1_datasets")
    remarks = remarked(node, "add up")
    assert remarks.keys() == {(corpus, row) for corpus, row, _ in rows_of(node)}
    for corpus, row, columns in rows_of(node):
        total = sum(columns[label] for label in CORPORA[corpus].label_names)
        assert f"add up to {total}, not to {columns['utterances']}" in remarks[corpus, row]
        splits = ("test",) if row == "test" else ("train", "validation")
        assert columns["utterances"] == sum(CORPORA[corpus].splits[split].utterances for split in splits)


def test_remark_on_the_visual_modality_of_meld() -> None:
    node = read("amb_dsgdn/table4_modalities")
    share = supports("meld").max() / supports("meld").sum()
    constant = {"weighted_precision": 100 * share**2, "weighted_f1": 100 * share * 2 * share / (1 + share)}
    assert node["published"]["meld"]["visual"] == pytest.approx(constant, abs=0.005)
    assert f"accuracy is {100 * share:.2f}" in remarked(node, "neutral")["meld", "visual"]
    published = node["published"]["meld"]
    assert published["text+audio"]["weighted_f1"] < published["text"]["weighted_f1"]


@pytest.mark.parametrize("name", ["amb_dsgdn/table5_semantic_graph", "amb_dsgdn/table6_balancing"])
def test_remark_on_swapped_columns(name: str) -> None:
    node, main = read(name), read(MAIN["meld"])["published"]["meld"]["amb_dsgdn"]
    full = node["published"]["meld"]["full"]
    assert ("meld", "full") in remarked(node, "swapped")
    assert full == {"weighted_f1": main["weighted_precision"], "weighted_precision": main["weighted_f1"]}
    in_order = read(MAIN["iemocap"])["published"]["iemocap"]["amb_dsgdn"]
    assert node["published"]["iemocap"]["full"] == {key: in_order[key] for key in full}


def test_remarks_on_values_that_two_variants_share() -> None:
    tables = [read(f"amb_dsgdn/{table}") for table in ("table5_semantic_graph", "table6_balancing")]
    fifth, sixth = (table["published"] for table in tables)
    assert fifth["iemocap"]["gcn"]["weighted_precision"] == sixth["iemocap"]["no_balancing_gcn"]["weighted_precision"]
    assert fifth["meld"]["gcn"]["weighted_precision"] == sixth["meld"]["no_balancing_no_graph"]["weighted_precision"]
    assert remarked(tables[0], "Table 6").keys() == {("iemocap", "gcn"), ("meld", "gcn")}


def test_remarks_on_time_against_throughput() -> None:
    node = read("amb_dsgdn/table8_overhead")
    remarks = remarked(node, "contradict")
    contradicting = set()
    for corpus, row, change in rows_of(node):
        if row == "baseline":
            continue
        share = {column: value / node["published"][corpus]["baseline"][column] for column, value in change.items()}
        slower = share["inference_seconds_per_utterance"]
        expected, printed = 1 - 1 / (1 + slower), -share["inference_utterances_per_second"]
        if abs(expected - printed) > 0.02:
            contradicting.add((corpus, row))
            percents = re.findall(r"\d+\.\d+", remarks[corpus, row])
            assert [float(text) for text in percents] == pytest.approx(
                [100 * slower, 100 * expected, 100 * printed], abs=0.02
            )
    assert remarks.keys() == contradicting


def test_remark_on_the_parameters() -> None:
    counts = {}
    for corpus in CORPORA:
        config = plain(compose(["model=amb_dsgdn_released", f"data=synthetic_{corpus}"]))
        counts[corpus] = count_parameters(published_model(config, CORPORA[corpus])) / 1e6
    node = read("amb_dsgdn/table9_cost")
    assert node["published"]["iemocap"]["amb_dsgdn"]["parameters"] / 1e6 == pytest.approx(counts["iemocap"], abs=0.005)
    assert f"on MELD they are {counts['meld']:.2f} million" in remarked(node, "parameters")["meld", "amb_dsgdn"]


# What the paper prints

needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason=f"the text of the paper is not at {PAPER}")


def printed(table: int) -> Numbers:
    """Row → numbers of a table in the paper's text, in its order; percent signs and brackets left aside."""
    text = PAPER.read_text(encoding="utf-8")
    body = re.split(r"\n\n|\nTable ", text[text.index(f"\nTable {table}:") + 1 :])[0]
    rows: Numbers = {}
    for line in body.splitlines()[1:]:
        label, numbers = re.fullmatch(r"(.*?)((?:\s+[-+(]*\d[\d.]*[%)]*|\s+[/-])*)\s*", line).groups()  # type: ignore[union-attr]
        values = [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?(?![\d.%])", numbers)]
        if values:
            rows[label or str(values.pop(0))] = values
    return rows


@needs_paper
@pytest.mark.parametrize(("table", "corpus"), [(2, "iemocap"), (3, "meld")])
def test_main_results_are_those_of_the_paper(table: int, corpus: str) -> None:
    ours = {}
    for _, row, columns in rows_of(read(MAIN[corpus])):
        assert len(columns) == 2 * len(CORPORA[corpus].label_names) + 2
        pairs = zip(cells(corpus, columns, measure(columns)), cells(corpus, columns, "f1"), strict=True)
        totals = [columns[TOTALS[measure(columns)]], columns["weighted_f1"]]
        ours[row] = [*chain.from_iterable(pairs), *totals]
    paper = printed(table)
    assert ours == {row.replace("AMB-DSGDN(Ours)", "amb_dsgdn"): values for row, values in paper.items()}


@needs_paper
@pytest.mark.parametrize(
    ("table", "name", "labels"),
    [
        (
            4,
            "table4_modalities",
            {"A": "audio", "T": "text", "V": "visual", "A+T": "text+audio", "V+T": "text+visual",
             "A+V+T": "text+audio+visual"},
        ),
        (
            5,
            "table5_semantic_graph",
            {"w/o Rel Subgraph + DiffRGCN": "no_graph", "w/o DiffRGCN": "gcn", "Full Model": "full"},
        ),
        (
            6,
            "table6_balancing",
            {"w/o MD + Rel Subgraph + DiffRGCN": "no_balancing_no_graph", "w/o MD + DiffRGCN": "no_balancing_gcn",
             "w/o MD": "no_balancing", "Full Model": "full"},
        ),
    ],
)  # fmt: skip
def test_ablations_are_those_of_the_paper(table: int, name: str, labels: dict[str, str]) -> None:
    published = read(f"amb_dsgdn/{name}")["published"]
    paper = printed(table)
    assert paper.keys() == labels.keys()
    for label, row in labels.items():
        assert paper[label] == [*published["iemocap"][row].values(), *published["meld"][row].values()], label
    assert all(rows.keys() == set(labels.values()) for rows in published.values())


@needs_paper
def test_grids_are_those_of_the_paper() -> None:
    text = PAPER.read_text(encoding="utf-8")
    grids = re.findall(r"^(IEMOCAP|MELD)\nq.*?((?:p_\{exe\}=\d\.\d ?.*?)+)\n((?:0\.\d .*\n){3})", text, re.MULTILINE)
    assert len(grids) == 2
    for corpus, header, body in grids:
        executes = re.findall(r"\{exe\}=(\d\.\d)", header)
        expected = {
            (float(base), float(execute)): float(score)
            for base, *scores in (line.split() for line in body.splitlines())
            for execute, score in zip(executes, scores, strict=True)
        }
        node = read(f"amb_dsgdn/table7_base_execute_{corpus.lower()}")
        x, y = node["axes"]["x"]["values"], node["axes"]["y"]["values"]
        ours = {(y[row], x[row]): columns["weighted_f1"] for _, row, columns in rows_of(node)}
        assert ours == expected
        for variant, overrides in node["variants"].items():
            assert overrides == [
                f"hyperparameters.base_probability={y[variant]}",
                f"hyperparameters.execute_probability={x[variant]}",
            ]


@needs_paper
def test_costs_are_those_of_the_paper() -> None:
    published = read("amb_dsgdn/table8_overhead")["published"]
    units = [1e3, 1, 1e3, 1e-12]  # milliseconds, samples/s, milliseconds, T
    expected = {
        ("diffrgcn", "iemocap"): "DiffRGCN IEMOCAP",
        ("diffrgcn", "meld"): "MELD",
        ("balancing", "iemocap"): "Adaptive Modality Balancing IEMOCAP",
        ("balancing", "meld"): "MELD",
    }
    text = PAPER.read_text(encoding="utf-8")
    body = text[text.index("Table 8:") :].split("\n\n")[0].splitlines()[-4:]
    for ((part, corpus), label), line in zip(expected.items(), body, strict=True):
        assert line.startswith(label)
        numbers = [float(n) for n in re.findall(r"(?<= )[-+]?\d+\.\d+(?= |$)", re.sub(r" \([^)]*\)", "", line))]
        rows = published[corpus]["baseline"], published[corpus][f"change by {part}"]
        pairs = zip(*(row.values() for row in rows), strict=True)
        ours = [scale * value for pair, scale in zip(pairs, units, strict=True) for value in pair]
        assert ours == pytest.approx(numbers, rel=1e-9)


@needs_paper
def test_parameters_and_run_times_are_those_of_the_paper() -> None:
    published = read("amb_dsgdn/table9_cost")["published"]
    paper = {label.replace("AMB-DSGDN (ours)", "amb_dsgdn"): values for label, values in printed(9).items()}
    assert paper.keys() == published["iemocap"].keys() == published["meld"].keys()
    for row, (parameters, *seconds) in paper.items():
        ours = [published[corpus][row] for corpus in ("iemocap", "meld")]
        assert [columns["parameters"] / 1e6 for columns in ours] == pytest.approx([parameters] * 2, rel=1e-9)
        assert [columns["train_seconds"] for columns in ours] == seconds


@needs_paper
def test_corpora_are_those_of_the_paper() -> None:
    published = read("amb_dsgdn/table1_datasets")["published"]
    text = PAPER.read_text(encoding="utf-8")
    # The columns of the classes, as the header merges them; "-" stands for none.
    order = {
        "iemocap": ["neutral", "happy", "sad", "angry", "excited", "frustrated"],
        "meld": ["neutral", "joy", "sadness", "anger", "surprise", "disgust", "fear"],
    }
    for corpus, classes in order.items():
        (line,) = re.findall(rf"^{corpus.upper()} (\d+ / .*)$", text, re.MULTILINE)
        dialogues, utterances, rest = re.fullmatch(r"(\d+ / \d+) (\d+ / \d+) (.*)", line).groups()  # type: ignore[union-attr]
        speakers, number, per_class = re.fullmatch(r"(\d+) (\d+) (.*)", rest).groups()  # type: ignore[union-attr]
        pairs = [dialogues, utterances, *re.findall(r"\d+ / \d+", per_class)]
        for i, row in enumerate(("train+validation", "test")):
            columns = published[corpus][row]
            assert (columns["speakers"], columns["classes"]) == (int(speakers), int(number))
            expected = [int(pair.split(" / ")[i]) for pair in pairs]
            counts = [columns[label] for label in classes]
            assert [columns["dialogues"], columns["utterances"], *counts] == expected
