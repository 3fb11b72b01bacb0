"""Noisy and missing modalities: what is done to the features, what is scored, and where it is written."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from merc.config import compose
from merc.data.conversation import Conversations
from merc.data.corpora import MELD
from merc.data.datamodule import SyntheticDataModule
from merc.data.synthetic import CONTAGION, INERTIA, SIGNAL, generate
from merc.errors import MercError
from merc.evaluate import evaluate, evaluate_disturbed, evaluate_sweep
from merc.files import write_json
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.run_folder import RunFolder
from merc.robustness import (
    LEVELS,
    Disturbance,
    disturb,
    disturbances,
    every_missing_set,
    measure,
    record,
    training_statistics,
)
from merc.train import train

DIMS = {"text": 6, "audio": 4, "visual": 3}
SMALL = (
    "data=synthetic_meld", "data.size=0.1", "data.dims.text=16", "data.dims.audio=12", "data.dims.visual=8",
    "trainer=cpu", "hyperparameters.hidden_dim=16", "hyperparameters.batch_size=8", "trainer.max_epochs=3",
)  # fmt: skip
ALL = ("text", "audio", "visual")


@pytest.fixture(scope="module")
def part() -> Conversations:
    return generate(MELD, size=0.5, seed=1, dims=DIMS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that listens to audio and video only, and has learnt something."""
    root = tmp_path_factory.mktemp("runs")
    weights = [f"+hyperparameters.logit_weights.{m}={w}" for m, w in {"text": 0, "audio": 1, "visual": 1}.items()]
    said = [*SMALL, "classifier=weighted_logits", *weights, "data.signal.audio=4", "hyperparameters.learning_rate=1e-2"]
    train(compose([*said, f"run_dir={root / 'first'}"]))
    return root


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(runs / "first", tmp_path / "first")
    return RunFolder(tmp_path / "first")


def disturbed(ckpt: Path, *overrides: str) -> list[dict[str, Any]]:
    said = [f"ckpt='{ckpt}'", "trainer=cpu", *overrides]
    return evaluate_disturbed(compose(said, "evaluate"), said)


def swept(root: Path, *overrides: str) -> list[Path]:
    said = [f"run_root='{root}'", "trainer=cpu", *overrides]
    return evaluate_sweep(compose(said, "evaluate"), said)


def recorded(folder: RunFolder) -> list[dict[str, Any]]:
    content = json.loads(folder.robustness.read_text())
    assert content["format"] == 1
    rows: list[dict[str, Any]] = content["rows"]
    return rows


# What is asked for


def test_noise_is_on_all_modalities_together_then_on_each() -> None:
    asked = disturbances(ALL, [0.2, 0.5])
    assert [(d.modalities, d.noise) for d in asked] == [
        (names, level) for names in (ALL, ("text",), ("audio",), ("visual",)) for level in (0.2, 0.5)
    ]
    assert disturbances(["text"], [0.5]) == [Disturbance(0.5, ("text",))]


def test_without_noise_each_set_of_missing_modalities_is_scored_once() -> None:
    assert disturbances(ALL, None, drop=["audio"]) == [Disturbance(0.0, (), ("audio",))]
    asked = disturbances(ALL, [0, 0.2, 0])
    assert asked.count(Disturbance(0.0, ())) == sum(not d.noise for d in asked) == 1
    assert len(asked) == 1 + len((ALL, *ALL))
    assert all(not d.modalities for d in every_missing_set(ALL))


def test_chosen_modalities_are_noisy_together_and_missing_ones_are_not() -> None:
    assert disturbances(ALL, [1], noisy=["visual", "text"]) == [Disturbance(1.0, ("text", "visual"))]
    assert disturbances(ALL, [1], noisy=["audio", "text"], drop=["audio"]) == [Disturbance(1.0, ("text",), ("audio",))]
    assert {d.drop for d in disturbances(ALL, None, drop=["text"])} == {("text",)}


def test_every_set_of_modalities_is_missing_once_but_all() -> None:
    sets = [set(d.drop) for d in every_missing_set(ALL)]
    assert len(sets) == 2 ** len(ALL) - 2
    assert all(sets.count(names) == 1 and 0 < len(names) < len(ALL) for names in sets)
    assert every_missing_set(["text"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": [-0.1]}, r"noise=-0\.1"),
        ({"noise": ["loud"]}, "noise=loud"),
        ({"noise": [True]}, "noise=True"),
        ({"noise": [float("nan")]}, "noise=nan: give finite numbers"),
        ({"noise": [float("inf")]}, "noise=inf: give finite numbers"),
        ({"noise": 0.1}, r"noise=0\.1 is not a list.*noise=\[0\.1\]"),
        ({"noise": [1], "noisy": "audio"}, r"noisy=audio is not a list.*noisy=\[audio\]"),
        ({"noise": None, "drop": "audio"}, r"drop=audio is not a list.*drop=\[audio\]"),
        ({"noise": None, "drop": [5]}, "drop names '5'"),
        ({"noise": [1], "noisy": ["adio"]}, "noisy names 'adio'.*Did you mean 'audio'"),
        ({"noise": [1], "drop": ["vidual"]}, "drop names 'vidual'.*Did you mean 'visual'"),
        ({"noise": None, "drop": list(ALL)}, "nothing to look at"),
        ({"noise": [1], "noisy": ["text"], "drop": ["text"]}, "missing features have no noise"),
    ],
)
def test_impossible_disturbances_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MercError, match=message):
        disturbances(ALL, **arguments)


# What is done to the features


def test_noise_has_the_size_that_was_asked_for_in_every_dimension(part: Conversations) -> None:
    scale = torch.tensor([1e-3, 1.0, 100.0, 0.0])
    skewed = Conversations(**{**vars(part), "features": {**part.features, "audio": part.features["audio"] * scale}})
    statistics = training_statistics(skewed)
    noisy = disturb(skewed, Disturbance(0.7, ("audio",)), statistics, draw=0)
    difference = (noisy.features["audio"] - skewed.features["audio"]).double()
    expected = 0.7 * skewed.features["audio"].double().std(0, correction=0)
    utterances = len(part.labels)
    assert difference[:, :3].std(0) == pytest.approx(expected[:3], rel=5 / (2 * utterances) ** 0.5)
    assert (difference.mean(0)[:3].abs() < 5 * expected[:3] / utterances**0.5).all()
    assert difference[:, 3].abs().max() == 0
    assert torch.equal(noisy.features["text"], skewed.features["text"])


def test_a_draw_is_the_same_noise_at_all_levels_and_another_draw_is_not(part: Conversations) -> None:
    statistics = training_statistics(part)

    def noise(level: float, draw: int, names: tuple[str, ...] = ALL, modality: str = "text") -> torch.Tensor:
        noisy = disturb(part, Disturbance(level, names), statistics, draw)
        return noisy.features[modality].double() - part.features[modality].double()

    assert torch.equal(noise(0.5, 0), noise(0.5, 0, ("text",)))
    torch.testing.assert_close(2 * noise(0.5, 0), noise(1.0, 0), atol=1e-5, rtol=1e-5)
    correlation = torch.corrcoef(torch.stack([noise(1.0, 0).flatten(), noise(1.0, 1).flatten()]))[0, 1]
    assert correlation.abs() < 5 / part.features["text"].numel() ** 0.5
    assert not torch.allclose(noise(1.0, 0)[:, :3], noise(1.0, 0, modality="visual"))


def test_a_modality_has_the_same_noise_whatever_others_there_are(part: Conversations) -> None:
    alone = Conversations(**{**vars(part), "features": {"audio": part.features["audio"]}})
    noise = Disturbance(1.0, ("audio",))
    noisy, noisy_alone = (disturb(data, noise, training_statistics(data), draw=0) for data in (part, alone))
    assert torch.equal(noisy.features["audio"], noisy_alone.features["audio"])


def test_missing_features_are_the_mean_of_training(part: Conversations) -> None:
    train_part, test_part = part.select(range(50)), part.select(range(50, 60))
    without = disturb(test_part, Disturbance(0.0, ("audio",), ("text",)), training_statistics(train_part), draw=0)
    mean = train_part.features["text"].mean(0)
    torch.testing.assert_close(without.features["text"], mean.repeat(len(test_part.labels), 1), atol=1e-5, rtol=0)
    assert torch.equal(without.features["audio"], test_part.features["audio"])


# What is scored


def test_scores_are_the_means_over_the_draws_of_scikit_learns(run: RunFolder) -> None:
    module = EmotionRecognition.from_checkpoint(run.selected)
    size = {"size": 0.03, "dims": module.info.dims, "seed": 3, "evaluation_batch_size": 3}
    data = SyntheticDataModule("meld", signal=SIGNAL, inertia=INERTIA, contagion=CONTAGION, **size)
    data.setup()
    noise = Disturbance(1.5, ALL)
    (row,) = measure(module, data, "test", [noise], draws=3)
    statistics = training_statistics(data.parts["train"])
    f1, accuracy = [], []
    for draw in range(3):
        noisy = disturb(data.parts["test"], noise, statistics, draw)
        with torch.no_grad():
            predicted = module(noisy.batch(range(len(noisy.lengths)))).fused.argmax(-1)
        f1.append(f1_score(noisy.labels, predicted, average="weighted", zero_division=0))
        accuracy.append(accuracy_score(noisy.labels, predicted))
    assert len(set(f1)) > 1
    assert row["scores"]["weighted_f1"] == pytest.approx(sum(f1) / 3)
    assert row["scores"]["accuracy"] == pytest.approx(sum(accuracy) / 3)
    support = [scores["support"] for scores in row["scores"]["per_class"].values()]
    assert support == torch.bincount(data.parts["test"].labels, minlength=7).tolist()


def test_the_command_writes_into_the_run_folder(run: RunFolder) -> None:
    command = [
        sys.executable, "-m", "merc.evaluate", f"ckpt={run.path}", "noise=[0,3]", "draws=2", "trainer=cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.path.parent)
    assert done.returncode == 0, done.stderr
    assert "text+audio+visual" in done.stdout
    rows = {(tuple(row["modalities"]), row["noise"]): row for row in recorded(run)}
    assert rows.keys() == {((), 0.0), *((names, 3.0) for names in (ALL, *((m,) for m in ALL)))}
    assert len(rows) == len(recorded(run)) == done.stdout.count(" σ ")
    selected = json.loads(run.metrics.read_text())["selected"]
    clean = rows[(), 0.0]["scores"]
    assert clean == {name: selected[name] for name in clean}
    assert rows[ALL, 3.0]["scores"]["weighted_f1"] < clean["weighted_f1"] - 0.02
    # The text has no weight in this model, so that only the others count.
    assert rows[("text",), 3.0]["scores"]["per_class"] == clean["per_class"]
    assert rows[("audio",), 3.0]["scores"]["per_class"] != clean["per_class"]


def test_a_modality_without_weight_is_not_missed(run: RunFolder) -> None:
    (without_text,) = disturbed(run.path, "noise=[0]", "noisy=[audio]", "drop=[text]")
    assert without_text["drop"] == ["text"]
    scores = {row["noise"]: row["scores"] for row in disturbed(run.path, "noise=[0]", "noisy=[audio]")}
    assert without_text["scores"] == scores[0.0]
    without_audio = disturbed(run.path, "drop=[audio]")[0]
    assert without_audio["scores"]["weighted_f1"] < without_text["scores"]["weighted_f1"]


# Where it is written


def test_later_rows_replace_those_of_the_same_disturbance(tmp_path: Path) -> None:
    def row(noise: float, drop: list[str], score: float) -> dict[str, Any]:
        return {"noise": noise, "modalities": ["text"], "drop": drop, "split": "test", "scores": {"accuracy": score}}

    path = tmp_path / "robustness.json"
    record(path, [row(0.1, [], 0.5), row(0.2, [], 0.4)])
    record(path, [row(0.2, [], 0.3), row(0.2, ["audio"], 0.2)])
    found = [entry["scores"]["accuracy"] for entry in json.loads(path.read_text())["rows"]]
    assert found == [0.5, 0.3, 0.2]
    record(path, [{**row(0.0, [], score), "modalities": names} for names, score in ((["text"], 0.6), ([], 0.7))])
    found = [entry["scores"]["accuracy"] for entry in json.loads(path.read_text())["rows"]]
    assert found == [0.5, 0.3, 0.2, 0.7], "without noise it makes no difference whose noise that is"
    path.write_text("[]")
    with pytest.raises(MercError, match="damaged"):
        record(path, [])


def test_only_the_scores_of_the_run_itself_go_into_its_folder(run: RunFolder, tmp_path: Path) -> None:
    disturbed(run.last, "drop=[text]")
    disturbed(run.selected, "drop=[text]", "data=synthetic_meld", "data.size=0.02")
    disturbed(run.selected, "drop=[text]", f"out='{tmp_path / 'out'}'")
    assert not run.robustness.exists()
    assert (tmp_path / "out" / "robustness.json").exists()
    disturbed(run.selected, "drop=[text]")
    assert recorded(run)


def test_rows_of_processes_that_write_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_slowly(path: Path, content: Any) -> None:
        time.sleep(0.2)
        write_json(path, content)

    monkeypatch.setattr("merc.robustness.write_json", write_slowly)
    rows = [{"noise": 0.0, "modalities": [], "drop": [name], "split": "test"} for name in ALL]
    # The lock is that of an open file, so that it sets threads apart like processes.
    with ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(lambda row: record(tmp_path / "robustness.json", [row]), rows))
    written = json.loads((tmp_path / "robustness.json").read_text())["rows"]
    assert sorted(written, key=rows.index) == rows


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MercError, match=r"Cannot write .*robustness\.json.*out="):
        record(tmp_path / "file" / "robustness.json", [])


@pytest.mark.parametrize("others", [["data.size=0.02"], ["++data.size=0.02"], ["data=synthetic_meld"]])
def test_scores_on_other_data_are_printed_only(
    run: RunFolder, others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    disturbed(run.selected, "drop=[text]", *others)
    assert not run.robustness.exists()
    assert "Add out=…" in capsys.readouterr().out


def test_scores_of_a_run_that_still_trains_are_printed_only(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update_status(state="running")

    def measure_while_it_ends(*arguments: Any) -> list[dict[str, Any]]:
        run.update_status(state="finished")
        return measure(*arguments)

    monkeypatch.setattr("merc.evaluate.measure", measure_while_it_ends)
    disturbed(run.path, "drop=[text]")
    assert not run.robustness.exists()
    assert "Add out=…" in capsys.readouterr().out
    disturbed(run.path, "drop=[text]")
    assert recorded(run)
    assert "Add out=…" not in capsys.readouterr().out


def test_settings_of_noise_are_refused_where_only_modalities_are_missing(run: RunFolder) -> None:
    with pytest.raises(MercError, match="draws=9 is without effect"):
        disturbed(run.path, "drop=[text]", "draws=9")


def write_manifest(root: Path, name: str, data: str, runs: list[str]) -> None:
    jobs = [{"variant": run, "seed": 1, "overrides": [], "run": run} for run in runs]
    content = {"format": 1, "experiment": name, "data": data, "corpus": "meld", "overrides": [], "jobs": jobs}
    path = root / "sweeps" / name / f"{data}-0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_every_finished_run_of_a_sweep_is_evaluated_once(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs / "first", tmp_path / name)
    write_manifest(tmp_path, "mine/noise", "synthetic_meld", ["a", "waiting"])
    write_manifest(tmp_path, "mine/noise", "other", ["b", "a"])
    write_manifest(tmp_path, "mine/missing", "synthetic_meld", ["a"])
    assert swept(tmp_path, "sweep=[mine/noise,mine/missing]", "draws=1") == [tmp_path / "a", tmp_path / "b"]
    assert "2 of 3 runs evaluated; the others wait" in capsys.readouterr().out
    rows = recorded(RunFolder(tmp_path / "a"))
    assert rows == recorded(RunFolder(tmp_path / "b"))
    assert sorted({row["noise"] for row in rows}) == list(LEVELS)
    assert {tuple(row["drop"]) for row in rows} == {(), *(d.drop for d in every_missing_set(ALL))}
    swept(tmp_path, "sweep=mine/missing", "draws=1")
    assert recorded(RunFolder(tmp_path / "a")) == rows


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=mine/nose"], "no sweep of 'mine/nose'.*Did you mean 'mine/noise'"),
        (["sweep=mine/noise"], "None of the 1 runs of mine/noise is finished"),
        (["sweep=mine/noise", "ckpt=a"], "Leave out ckpt"),
        (["sweep=mine/noise", "data=synthetic_meld"], "on its own data"),
    ],
)
def test_sweeps_that_cannot_be_evaluated(tmp_path: Path, overrides: list[str], message: str) -> None:
    write_manifest(tmp_path, "mine/noise", "synthetic_meld", ["waiting"])
    with pytest.raises(MercError, match=message):
        swept(tmp_path, *overrides)


def test_a_run_folder_is_scored_on_its_own_data(run: RunFolder) -> None:
    said = [f"ckpt='{run.path}'", "trainer=cpu"]
    metrics = evaluate(compose(said, "evaluate"), said)
    selected = json.loads(run.metrics.read_text())["selected"]
    assert metrics["per_class"] == selected["per_class"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "Say what to evaluate"),
        (["ckpt=nothing.ckpt"], "There is no checkpoint at nothing.ckpt"),
        (["ckpt=nothing.safetensors"], "Say on which corpus"),
        (["ckpt=nothing.ckpt", "draws=0"], "draws=0"),
    ],
)
def test_nothing_to_evaluate(overrides: list[str], message: str) -> None:
    with pytest.raises(MercError, match=message):
        evaluate(compose(overrides, "evaluate"), overrides)
