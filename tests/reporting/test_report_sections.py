"""What a report says of the runs of a sweep, against scikit-learn and by what was planted in made-up runs."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import PUBLISHED, Lab, robustness, section_of, sections_of, table_of
from sklearn.metrics import confusion_matrix, f1_score

from merc.errors import MercError
from merc.reporting import statistics
from merc.reporting.report import runs as runs_module
from merc.reporting.report.columns import COSTS
from merc.reporting.report.render import scores_csv
from merc.reporting.report.tables import Table, missing_scores, noise_curve, noises, section_tables
from merc.sweeping.experiment import experiment_names, read_experiment


def texts(table: Table) -> dict[str, dict[str, str]]:
    """Row → column → text."""
    return {
        row[0].text: {column: cell.text for column, cell in zip(table.columns, row, strict=True)} for row in table.rows
    }


def confusions_by_sklearn(lab: Lab, skill: float, seeds: Sequence[int]) -> statistics.Array:
    per_seed = []
    for seed in seeds:
        predictions = lab.predict(skill, seed)
        ids = range(len(lab.classes))
        rows = [lab.dialogue == dialogue for dialogue in range(lab.dialogue.max() + 1)]
        per_seed.append([confusion_matrix(lab.labels[row], predictions[row], labels=ids) for row in rows])
    return np.array(per_seed, dtype=float)


def test_scores_are_means_over_seeds_of_scikit_learns(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6})
    section = section_of(lab)
    for row, skill in zip(section.rows, (0.4, 0.6), strict=True):
        scores = [100 * f1_score(lab.labels, lab.predict(skill, seed), average="weighted") for seed in (1, 2, 3)]
        assert row.values("weighted_f1") == pytest.approx(scores)
        shown = texts(table_of(section))[row.name + (" (reference)" if row.name == "all" else "")]
        assert shown["weighted F1"].split(" *")[0] == f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}"
        each = f1_score(lab.labels, lab.predict(skill, 1), average=None)
        assert row.values("f1/joy")[0] == pytest.approx(100 * each[1])


def test_tests_are_those_of_the_predictions(lab: Lab) -> None:
    lab.grid("mine/table", {"a": 0.55, "b": 0.5, "all": 0.6})
    tests = section_of(lab).tests
    reference = confusions_by_sklearn(lab, 0.6, (1, 2, 3))
    compared = [statistics.compare(confusions_by_sklearn(lab, s, (1, 2, 3)), reference, 200) for s in (0.55, 0.5)]
    for measure, index in (("accuracy", 0), ("weighted_f1", 2)):
        adjusted = statistics.holm([float(each.p_runs[index]) for each in compared])
        for name, comparison, p in zip("ab", compared, adjusted, strict=True):
            tested = tests[measure][name]
            assert tested.difference == pytest.approx(100 * comparison.difference[index])
            assert (tested.low, tested.high) == pytest.approx(
                (100 * comparison.low[index], 100 * comparison.high[index])
            )
            assert tested.p_runs == pytest.approx(p)
            assert tested.effect == pytest.approx(float(comparison.effect[index]))


def test_a_planted_effect_is_marked_and_a_planted_null_is_not(lab: Lab) -> None:
    lab.grid("mine/table", {"worse": 0.2, "same": 0.601, "all": 0.6}, seeds=(1, 2, 3, 4, 5))
    shown = texts(table_of(section_of(lab)))
    assert shown["worse"]["weighted F1"].endswith("**")
    assert "*" not in shown["same"]["weighted F1"]
    assert "*" not in shown["all (reference)"]["weighted F1"]


def test_the_optimism_of_the_published_protocol_is_a_number(lab: Lab) -> None:
    lab.grid("mine/table", {"all": 0.5})
    section = section_of(lab)
    (row,) = section.rows
    shown = texts(table_of(section, "epochs"))["all (reference)"]
    expected = np.mean(row.values("weighted_f1", "test_best")) - np.mean(row.values("weighted_f1", "selected"))
    assert expected > 0
    assert shown["optimism"] == f"{expected:+.2f}"
    for epoch in ("selected", "last", "test_best"):
        assert shown[epoch].startswith(f"{np.mean(row.values('weighted_f1', epoch)):.2f} ±")
    assert {row[1].text for row in table_of(section, "epochs").rows} == {"accuracy", "weighted F1"}


def test_without_a_validation_split_the_last_epoch_counts(lab: Lab) -> None:
    lab.experiment("mine/table")
    lab.run("merged/seed=1", 0.5, merged=True)
    lab.sweep("mine/table", [lab.job("all", 1, "merged/seed=1")])
    section = section_of(lab)
    (row,) = section.rows
    assert row.headline == "last"
    assert row.values("weighted_f1") == row.values("weighted_f1", "last") != []
    assert "last epoch" in table_of(section).title
    assert texts(table_of(section, "epochs"))["all (reference)"]["selected"] == ""


def test_what_is_missing_is_said(lab: Lab) -> None:
    lab.experiment("mine/table")
    lab.run("a/seed=1")
    lab.run("a/seed=2", state="failed")
    lab.run("a/seed=3", state="running")
    lab.sweep("mine/table", [lab.job("all", seed, f"a/seed={seed}") for seed in (1, 2, 3, 4)])
    table = table_of(section_of(lab))
    notes = "\n".join(table.notes)
    assert texts(table)["all (reference)"]["seeds"] == "1 of 4"
    assert "Failed: all seed 2: It broke." in notes
    assert "Running or interrupted: all seed 3 (epoch 3 of 10)." in notes
    assert "Not begun: all seed 4." in notes


def test_nothing_finished_is_a_table_too(lab: Lab) -> None:
    lab.experiment("mine/table", columns=["per_class_f1", "weighted_f1"], published={"meld": {"all": {"f1/joy": 60}}})
    lab.sweep("mine/table", [lab.job("all", 1, "nowhere/seed=1")])
    (table,) = section_tables(section_of(lab))
    assert "joy F1" in table.columns
    assert "Not begun: all seed 1." in table.notes


def test_variants_are_paired_on_the_seeds_of_both(lab: Lab) -> None:
    lab.experiment("mine/table")
    jobs = []
    for variant, seeds, skill in (("all", (1, 2, 3), 0.6), ("text", (2, 3, 4), 0.5)):
        for seed in seeds:
            lab.run(f"{variant}/seed={seed}", skill, seed)
            jobs.append(lab.job(variant, seed, f"{variant}/seed={seed}"))
    lab.sweep("mine/table", jobs)
    expected = statistics.compare(confusions_by_sklearn(lab, 0.5, (2, 3)), confusions_by_sklearn(lab, 0.6, (2, 3)), 200)
    assert section_of(lab).tests["weighted_f1"]["text"].difference == pytest.approx(100 * expected.difference[2])


def test_other_test_utterances_are_not_compared(lab: Lab, tmp_path: Path) -> None:
    lab.experiment("mine/table")
    lab.run("all/seed=1")
    other = Lab(tmp_path, dialogues=30)
    other.run("text/seed=1")
    lab.sweep("mine/table", [lab.job("all", 1, "all/seed=1"), lab.job("text", 1, "text/seed=1")])
    section = section_of(lab)
    assert section.tests == {}
    assert any("Not tested" in note and "text" in note for note in table_of(section).notes)


def test_seeds_with_data_of_their_own_all_count(lab: Lab, tmp_path: Path) -> None:
    """Generated conversations follow the seed: the variants of a seed share them, other seeds have others."""
    lab.experiment("mine/table")
    jobs = []
    for seed in (1, 2, 3):
        own = Lab(tmp_path, dialogues=30 + seed)
        for variant, skill in (("all", 0.6), ("text", 0.4)):
            own.run(f"{variant}/seed={seed}", skill, seed)
            jobs.append(lab.job(variant, seed, f"{variant}/seed={seed}"))
    lab.sweep("mine/table", jobs)
    section = section_of(lab)
    ours, reference = (next(row for row in section.rows if row.name == name) for name in ("text", "all"))
    tested = section.tests["weighted_f1"]["text"]
    means = [np.mean(row.values("weighted_f1")) for row in (ours, reference)]
    assert tested.difference == pytest.approx(means[0] - means[1])
    assert not math.isnan(tested.p_variants)
    low, high = ours.intervals["weighted_f1"]
    assert low < means[0] < high


def test_a_single_seed_has_neither_sd_nor_a_claim_about_seeds(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.3, "all": 0.6}, seeds=(1,))
    section = section_of(lab)
    assert "±" not in texts(table_of(section))["text"]["weighted F1"]
    assert texts(table_of(section))["text"]["weighted F1"].endswith(" *")
    assert math.isnan(section.tests["weighted_f1"]["text"].p_variants)


def test_seeds_of_several_commands_are_rows_of_one_table(lab: Lab) -> None:
    lab.experiment("mine/table", reference=None)
    for seeds in ((1,), (2, 3)):
        for seed in seeds:
            lab.run(f"a/seed={seed}", 0.5, seed)
        jobs = [lab.job("all", seed, f"a/seed={seed}") for seed in seeds]
        given = f"seed={','.join(map(str, seeds))}"
        lab.sweep("mine/table", jobs, name=f"meld-{len(seeds)}", overrides=("graph=gcn", given))
    (row,) = section_of(lab).rows
    assert list(row.runs) == [1, 2, 3]
    assert list(section_of(lab).sweep.overrides) == ["graph=gcn"]


def test_published_numbers_stand_beside_ours(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.5, "all": 0.6}, published=PUBLISHED)
    table = table_of(section_of(lab))
    shown = texts(table)
    assert shown["all (reference)"]["published"] == "66.18"
    assert shown["text"]["published"] == ""
    theirs = shown["DialogueRNN (published only)"]
    assert theirs["published"] == "57.95"
    assert theirs["weighted F1"] == theirs["seeds"] == ""
    assert table.theirs == {2}


def test_published_numbers_stand_below_ours_where_there_are_many_columns(lab: Lab) -> None:
    lab.grid("mine/table", {"all": 0.6}, published=PUBLISHED, columns=["per_class_f1", "accuracy", "weighted_f1"])
    table = table_of(section_of(lab))
    assert table.columns[2:] == ["neutral F1", "joy F1", "anger F1", "accuracy", "weighted F1"]
    assert [row[0].text for row in table.rows] == [
        "all (reference)",
        "all (published)",
        "DialogueRNN (published only)",
    ]
    assert table.theirs == {1, 2}
    assert texts(table)["all (published)"]["joy F1"] == "64.59"
    assert texts(table)["DialogueRNN (published only)"]["weighted F1"] == "57.95"


def test_what_the_paper_prints_besides_has_a_table_of_its_own(lab: Lab) -> None:
    cells = {"recall/joy": 61.0, "recall/anger": 50.25, "f1/joy": 64.59, "wa_acc": 60.25}
    columns = ["per_class_f1", "weighted_f1"]
    lab.grid("mine/table", {"all": 0.6}, published={"meld": {"all": cells, "theirs": {"wa_acc": 1.5}}}, columns=columns)
    table = table_of(section_of(lab), "published")
    assert table.columns == ["method", "measure", "whole split", "joy", "anger"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["all", "recall", "", "61.00", "50.25"],
        ["all", "wa-ACC", "60.25", "", ""],
        ["theirs", "wa-ACC", "1.50", "", ""],
    ]
    assert table.theirs == {0, 1, 2}
    lab.grid("mine/table", {"all": 0.6}, published={"meld": {"all": {"f1/joy": 64.59}}}, columns=columns)
    assert "published" not in [table.name for table in section_tables(section_of(lab))]


def test_the_published_numbers_are_those_of_the_corpus(lab: Lab) -> None:
    lab.experiment("mine/table", published=PUBLISHED, remarks=["meld/all: wrong.", "iemocap: worse.", "all: known."])
    lab.run("a/seed=1")
    for corpus in ("meld", "iemocap"):
        lab.sweep("mine/table", [lab.job("all", 1, "a/seed=1")], data=corpus, corpus=corpus, name=f"{corpus}-0")
    iemocap, meld = sections_of(lab)
    assert texts(table_of(iemocap))["all (reference)"]["published"] == "75.64"
    assert texts(table_of(meld))["all (reference)"]["published"] == "66.18"
    assert iemocap.remarks == ["iemocap: worse.", "all: known."]
    assert meld.remarks == ["meld/all: wrong.", "all: known."]


def test_scores_on_other_data_are_not_passed_off_as_comparable(lab: Lab) -> None:
    lab.experiment("mine/table", published=PUBLISHED)
    lab.run("a/seed=1")
    lab.sweep("mine/table", [lab.job("all", 1, "a/seed=1")], data="synthetic_meld", corpus="meld")
    notes = table_of(section_of(lab)).notes
    assert "Ours are on synthetic_meld, the published numbers on meld: they do not compare." in notes
    lab.sweep("mine/table", [lab.job("all", 1, "a/seed=1")])
    assert not any("do not compare" in note for note in table_of(section_of(lab)).notes)


def test_costs_are_shown_in_readable_units_and_against_the_reference(lab: Lab) -> None:
    columns = ["parameters", "inference_seconds_per_utterance", "inference_flops_per_second", "train_seconds"]
    theirs = {"inference_flops_per_second": 0.0805e12, "train_seconds": 13169.51}
    published = {
        "meld": {
            "plain": {"parameters": 12.92e6, "inference_seconds_per_utterance": 0.0769e-3},
            "full, faster": theirs,
        }
    }
    variants: dict[str, list[str]] = {"plain": [], "full": []}
    lab.experiment(
        "mine/costs", kind="costs", columns=columns, reference="plain", variants=variants, published=published
    )
    jobs = []
    for variant, seconds in (("plain", 1e-4), ("full", 1.5e-4)):
        costs = {
            "parameters": 13_130_000,
            "inference_seconds_per_utterance": seconds,
            "inference_flops_per_second": 2e8 / seconds,
            "train_seconds": 12.0,
            "device": "cpu",
        }
        lab.run(f"{variant}/seed=1", costs=costs)
        jobs.append(lab.job(variant, 1, f"{variant}/seed=1"))
    lab.sweep("mine/costs", jobs)
    section = section_of(lab)
    shown = texts(table_of(section))
    assert shown["plain (reference)"]["parameters (M)"] == "13.13"
    assert shown["full"]["inference (ms/utterance)"] == "0.15 (×1.50)"
    assert shown["plain (reference)"]["inference (GFLOP/s)"] == "2000"
    assert shown["plain (reference)"]["training (s)"] == "12"
    assert [cell.text for cell in table_of(section).rows[0]].count("12.92") == 1
    assert "0.0769" in [cell.text for cell in table_of(section).rows[0]]
    assert shown["full, faster (published only)"]["inference (GFLOP/s)"] == ""
    published = next(row for row in table_of(section).rows if row[0].text == "full, faster (published only)")
    assert [cell.text for cell in published if cell.text][1:] == ["80.5", "13169.51"]
    rows = [row for row in csv.DictReader(io.StringIO(scores_csv(section))) if row["column"].startswith("inference_s")]
    assert [(row["variant"], row["unit"], row["mean"], row["published"]) for row in rows] == [
        ("plain", "ms/utterance", "0.1", "0.0769"),
        ("full", "ms/utterance", "0.15", ""),
    ]
    assert [table.name for table in section_tables(section)] == ["scores"]


def test_robustness_is_a_table_of_noise_and_one_of_missing_modalities(lab: Lab) -> None:
    lab.experiment("mine/noise", kind="robustness", columns=["weighted_f1"])
    for seed in (1, 2):
        lab.run(f"a/seed={seed}", seed=seed, robustness=robustness(0.6 + 0.02 * seed))
    lab.sweep("mine/noise", [lab.job("all", seed, f"a/seed={seed}") for seed in (1, 2)])
    section = section_of(lab)
    assert [table.name for table in section_tables(section)][:3] == ["noise", "missing", "scores"]
    noise = [[cell.text for cell in row] for row in table_of(section, "noise").rows]
    assert table_of(section, "noise").columns == ["variant", "noise on", "0 σ", "0.5 σ"]
    assert noise == [
        ["all (reference)", "text+audio", "63.00 ± 1.41", "58.00 ± 1.41"],
        ["all (reference)", "audio", "63.00 ± 1.41", "62.50 ± 1.41"],
    ]
    missing = texts(table_of(section, "missing"))["all (reference)"]
    assert missing["nothing missing"] == "63.00 ± 1.41"
    assert missing["without text"] == "33.00 ± 1.41"


@pytest.mark.parametrize("older", [False, True])
def test_curves_of_the_same_missing_modalities_start_at_one_row_without_noise(lab: Lab, older: bool) -> None:
    """Older files have that row once for each set of noisy modalities."""
    content = robustness(0.6)
    if not older:
        rows: list[dict[str, Any]] = content["rows"]  # type: ignore[assignment]
        zero = {str(row["drop"]): {**row, "modalities": []} for row in rows if not row["noise"]}
        content["rows"] = [*zero.values(), *(row for row in rows if row["noise"])]
    lab.experiment("mine/noise", kind="robustness", columns=["weighted_f1"])
    lab.run("a/seed=1", robustness=content)
    lab.sweep("mine/noise", [lab.job("all", 1, "a/seed=1")])
    (row,) = section_of(lab).rows
    assert noises(row) == ["text+audio", "audio"]
    for noisy, noisy_score in (("text+audio", 55.0), ("audio", 59.5)):
        curve = noise_curve(row, noisy, "weighted_f1")
        assert list(curve) == [0.0, 0.5]
        assert list(curve.values()) == [pytest.approx([60.0]), pytest.approx([noisy_score])]
    assert noise_curve(row, "text", "weighted_f1") == {}
    missing = missing_scores(row, "weighted_f1")
    assert list(missing) == ["", "text"]
    assert list(missing.values()) == [pytest.approx([60.0]), pytest.approx([30.0])]


def test_seeds_of_different_features_are_no_variant(lab: Lab) -> None:
    lab.experiment("mine/table")
    jobs = [lab.job(name, seed, f"{name}/seed={seed}") for name in ("text", "all") for seed in (1, 2)]
    lab.sweep("mine/table", jobs)
    stores = {"text": "ab", "all": "bb"}
    for name, fingerprints in stores.items():
        for seed, fingerprint in enumerate(fingerprints, 1):
            lab.run(f"{name}/seed={seed}", seed=seed, corpus={"fingerprint": fingerprint, "splits": {}})
    (note,) = (note for note in table_of(section_of(lab)).notes if "feature stores" in note)
    assert note.startswith("The seeds of text were trained")


def test_corpora_count_what_the_runs_were_given(lab: Lab) -> None:
    published = {"meld": {"train+validation": {"utterances": 11098}, "test": {"utterances": 2610, "joy": 368}}}
    lab.experiment("mine/corpora", kind="corpora", columns=["dialogues", "utterances"], published=published)
    split = {"dialogues": 3, "utterances": 30, "speakers": 2, "classes": {"neutral": 10, "joy": 15, "anger": 5}}
    lab.run("a/seed=1", corpus={"splits": dict.fromkeys(("train", "train+validation", "test"), split)})
    lab.sweep("mine/corpora", [lab.job("all", 1, "a/seed=1")])
    (table,) = section_tables(section_of(lab))
    shown = texts(table)
    assert shown["train"]["utterances"] == "30"
    assert shown["train"]["speakers"] == "2"
    assert shown["train+validation (published)"]["utterances"] == "11\u202f098"
    assert shown["test"]["joy"] == "15"
    assert shown["test (published)"]["joy"] == "368"


def test_corpora_without_counts_are_those_of_the_predictions(lab: Lab) -> None:
    lab.grid("mine/corpora", {"all": 0.5}, kind="corpora", columns=["dialogues"])
    (table,) = section_tables(section_of(lab))
    assert texts(table)["test"]["dialogues"] == "40"
    assert texts(table)["test"]["joy"] == str((lab.labels == 1).sum())


def test_a_run_of_several_experiments_is_read_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: files are opened once for each run, however many tables show it."""
    lab.grid("mine/one", {f"v{index}": 0.5 for index in range(10)}, reference="v0")
    lab.grid("mine/two", {f"v{index}": 0.5 for index in range(10)}, reference="v1")
    read, opened = runs_module.read_predictions, []
    monkeypatch.setattr(runs_module, "read_predictions", lambda path: opened.append(path) or read(path))
    for section in sections_of(lab, resamples=20):
        section_tables(section)
        section_tables(section)
    assert len(opened) == len(set(opened)) == 30


def test_experiments_are_in_natural_order_and_chosen_by_name_or_folder(lab: Lab) -> None:
    for name in ("mine/table10", "mine/table9", "theirs/table1"):
        lab.grid(name, {"all": 0.5}, seeds=(1,))
    assert [section.experiment.name for section in sections_of(lab)] == ["mine/table9", "mine/table10", "theirs/table1"]
    assert [section.experiment.name for section in sections_of(lab, "theirs")] == ["theirs/table1"]
    assert [section.experiment.name for section in sections_of(lab, "mine/table9")] == ["mine/table9"]
    with pytest.raises(MercError, match=r"no sweep of 'mine/tabel9'.*Did you mean 'mine/table9'"):
        sections_of(lab, "mine/tabel9")


def test_mistakes_are_explained(lab: Lab) -> None:
    with pytest.raises(MercError, match="There is no sweep in"):
        sections_of(lab)
    lab.sweep("mine/tabel", [lab.job("all", 1, "a/seed=1")])
    lab.experiment("mine/table")
    with pytest.raises(MercError, match=r"no experiment 'mine/tabel'.*Did you mean 'mine/table'.*config_dir"):
        sections_of(lab)
    lab.experiment("mine/tabel", kind="pie")
    with pytest.raises(MercError, match=r"mine/tabel: kind must be one of table, "):
        sections_of(lab)


@pytest.mark.parametrize("name", ["metrics.json", "status.json", "predictions.parquet", "robustness.json"])
def test_damaged_files_are_named(lab: Lab, name: str) -> None:
    lab.grid("mine/table", {"all": 0.5}, seeds=(1,), kind="robustness")
    path = lab.runs / "model-meld-all/seed=1" / name
    path.write_text('{"half": ')
    with pytest.raises(MercError, match=rf"{path}"):
        section_tables(section_of(lab))


def test_a_damaged_manifest_is_named(lab: Lab) -> None:
    lab.grid("mine/table", {"all": 0.5}, seeds=(1,))
    path = lab.runs / "sweeps/mine/table/meld-0123abcd.json"
    path.write_text('{"jobs": []}')
    with pytest.raises(MercError, match=rf"{path} is no manifest"):
        sections_of(lab)


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_reported(name: str) -> None:
    experiment = read_experiment(name)
    known = {*statistics.SUMMARY, *(f"per_class_{measure}" for measure in statistics.PER_CLASS)}
    known |= COSTS.keys() | {"dialogues", "utterances"}
    assert set(experiment.columns) <= known
