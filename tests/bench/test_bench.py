"""The benchmark: turns, stopwatch, ratios, and the whole command, small."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from merc.bench.__main__ import bench, subjects_of
from merc.bench.interleave import Samples, interleave
from merc.bench.machine import Idleness, peak_resident
from merc.bench.processes import _until_first_step
from merc.bench.ratios import PRODUCTS, Group, ratios, spread
from merc.bench.results import Grid, _remarks, _training_stages
from merc.bench.subjects import Sample, Stopwatch, Turns, _StageClock
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.errors import MercError
from merc.models.lightning_module import EmotionRecognition
from merc.models.precision import multiplies_bfloat16
from tests.conftest import CLASSES, DIMS, begin_balancing

SETTINGS = plain(compose(config_name="bench"))
TARGETS = SETTINGS["targets"]


def count(turns: Turns, start: int) -> None:
    """A subject whose samples count up."""
    while True:
        turns.wait()
        turns.done({"train": float(start)})
        start += 1


def fail(turns: Turns) -> None:
    turns.wait()
    raise MercError("nothing can be measured")


def test_samples_are_taken_in_turns_behind_a_warm_up() -> None:
    notes: list[str] = []
    subjects = {"one": partial(count, start=0), "two": partial(count, start=10)}
    measured = interleave(subjects, rounds=2, others_at_most=1.0, retries=0, note=notes.append)
    assert {name: samples.rounds for name, samples in measured.items()} == {
        "one": [{"train": 1.0}, {"train": 2.0}],
        "two": [{"train": 11.0}, {"train": 12.0}],
    }
    assert [note.split(":")[0] for note in notes] == ["one", "two"] * 3


def test_samples_beside_busy_processes_are_thrown_away_until_retries_run_out() -> None:
    measured = interleave({"one": partial(count, start=0)}, 2, others_at_most=-1.0, retries=3, note=lambda _: None)
    samples = measured["one"]
    assert (samples.rejected, samples.busy) == (3, 2)
    assert [sample["train"] for sample in samples.rounds] == [4.0, 5.0]


def test_a_failing_subject_says_why() -> None:
    with pytest.raises(MercError, match="'broken' cannot be measured: nothing can be measured"):
        interleave({"broken": fail}, 1, 1.0, 0, lambda _: None)


def test_idleness_sees_other_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            with Idleness() as beside:
                time.sleep(1.2)
        finally:
            busy.kill()  # only now does its time count as own
    if beside.others is None:
        pytest.skip("this system does not tell")
    assert beside.others > 0.1


def test_peak_resident_grows_with_what_is_touched() -> None:
    before = peak_resident()
    block = bytearray(b"x" * (before + 2**25))
    assert peak_resident() - before >= len(block) - before


def test_a_stopwatch_charges_the_innermost() -> None:
    watch = Stopwatch()
    with watch.time("outer"):
        time.sleep(0.02)
        with watch.time("inner"):
            time.sleep(0.05)
    assert watch.seconds["inner"] >= 0.05
    assert 0.02 <= watch.seconds["outer"] < 0.05


class Starts(Stopwatch):
    """Remembers what it was told to time."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def start(self, name: str) -> None:
        self.names.append(name)
        super().start(name)


@pytest.mark.parametrize("balancing", ["none", "adaptive"])
def test_what_a_policy_asks_of_other_stages_is_part_of_balancing(
    make_config: Callable[..., dict[str, Any]], make_batch: Callable[..., ConversationBatch], balancing: str
) -> None:
    info = CorpusInfo(DIMS, CLASSES, speaker_slots=3, class_counts=(4, 3, 2, 1))
    module = EmotionRecognition(make_config(f"balancing={balancing}", "fusion=modality_attention"), info)
    clock, watch = _StageClock(Mock()), Starts()
    clock.watch = watch
    clock.setup(Mock(), begin_balancing(module.train()), "fit")
    module.training_step(make_batch(), 0)
    once = [f"forward: {stage}" for stage in ("fusion", "classifier", "objective")]
    balanced = ["forward: balancing"] * 3  # itself, and the fusion and the classifier that score the modalities
    assert watch.names[watch.names.index("forward: gate") + 1 :] == [
        *(balanced if balancing == "adaptive" else []),
        *once,
    ]
    assert watch.running == []


def test_a_command_may_warn_as_much_as_it_likes() -> None:
    warn = "import signal, sys; signal.alarm(20); sys.stderr.write('careful ' * 100_000); "
    step = """print('{"first_step": 1e9}', flush=True)"""
    assert _until_first_step([sys.executable, "-c", warn + step]) > 0
    with pytest.raises(MercError, match=r"took no training step: (careful ){100}"):
        _until_first_step([sys.executable, "-c", warn])


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_a_stage_that_only_later_rounds_have_is_shown() -> None:
    rounds = [{"data": 1.0, "evaluation: data": 9.0, "write": 9.0}, {"data": 1.0, "forward: balancing": 1.0}]
    assert _training_stages(rounds) == ["data", "forward: balancing"]


def group(**subjects: list[Sample]) -> Group:
    samples = {name.replace("_", " "): Samples(rounds=rounds) for name, rounds in subjects.items()}
    return Group("meld", "amb_dsgdn_released", samples, [(6.0, 4.5), (7.0, 4.5)], 1_500_000_000, 100_000_000)


def test_ratios_compare_round_by_round() -> None:
    floor = [{"train": 1.0, "evaluate": 0.2}, {"train": 2.0, "evaluate": 0.2}]
    product = [{"train": 1.5, "evaluate": 0.2}, {"train": 2.4, "evaluate": 0.4}]
    measured = {
        ratio.quantity: ratio
        for ratio in ratios(
            group(
                floor_fp32=floor,
                floor_bf16=floor,
                own_floor_fp32=[{"train": 0.5}, {"train": 1.0}],
                product_fp32=product,
                product_bf16=product,
                product_high=floor,
                product_medium=product,
                loop_fp32=[{"train": 1.5}, {"train": 2.0}],
                balancing_adaptive=[{"train": 1.1}, {"train": 1.3}],
                balancing_none=[{"train": 1.0}, {"train": 1.0}],
                reference_fp32=[{"train": 3.0, "evaluate": 1.0}, {"train": 7.2, "evaluate": 1.0}],
            ),
            TARGETS,
        )
    }
    values = {quantity: pytest.approx(ratio.value) for quantity, ratio in measured.items()}
    assert values == {
        "training fp32 / floor": 1.35,
        "training bf16 / floor": 1.35,
        "evaluation fp32 / floor": 1.5,
        "evaluation bf16 / floor": 1.5,
        "training high / floor": 1.0,
        "evaluation high / floor": 1.0,
        "training medium / floor": 1.35,
        "evaluation medium / floor": 1.5,
        "training fp32 / own floor": 2.7,
        "framework beyond a bare loop": 10.0,
        "adaptive balancing beyond none": 20.0,
        "peak memory beyond the data": 1.4,
        "start-up beyond imports": 2.0,
        "plain reference / training fp32": 2.5,
    }
    reached = {quantity: ratio.reached for quantity, ratio in measured.items()}
    assert reached["training bf16 / floor"] is reached["training medium / floor"] is True
    assert reached["training high / floor"] is None
    assert reached["framework beyond a bare loop"] is False
    assert reached["peak memory beyond the data"] is False
    assert reached["plain reference / training fp32"] is None


def test_grid_as_markdown() -> None:
    text = Grid("T", ("a", "b", "c"), [("x", "y", "1")]).markdown()
    assert text == "## T\n\n| a | b | c |\n| --- | --- | ---: |\n| x | y | 1 |\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models=[amb_dsgn]", "Did you mean 'amb_dsgdn'"),
        ("corpora=[mled]", "Did you mean 'meld'"),
        ("rounds=0", "rounds=0"),
    ],
)
def test_mistakes_are_explained(override: str, message: str) -> None:
    with pytest.raises(MercError, match=message):
        bench(compose([override], "bench"))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    monkeypatch.setattr("merc.bench.__main__.multiplies_bfloat16", lambda _: bfloat16)
    names = subjects_of("redifu", ("model=redifu", "data=synthetic_meld"), SETTINGS)
    of_bfloat16 = {"floor bf16", "product bf16", "product high", "product medium"}
    assert set(names) & of_bfloat16 == (of_bfloat16 if bfloat16 else set())
    measured = group(**{name.replace(" ", "_"): [{"train": 1.0, "evaluate": 1.0}] for name in names})
    compared = {ratio.quantity for ratio in ratios(measured, TARGETS)}
    assert ("training bf16 / floor" in compared) is ("evaluation medium / floor" in compared) is bfloat16
    assert ("cannot multiply bfloat16" in " ".join(_remarks([measured], SETTINGS))) is not bfloat16


def test_what_is_measured_depends_on_the_model() -> None:
    def names(model: str) -> set[str]:
        return set(subjects_of(model, (f"model={model}", "data=synthetic_meld"), SETTINGS))

    assert names("amb_dsgdn") - names("redifu_released") == {"balancing adaptive", "balancing none"}
    assert names("redifu_released") - names("redifu") == {"reference fp32"}


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "merc.bench", "models=[amb_dsgdn_released]", "corpora=[meld]", "rounds=1", "size=0.02"),
        *("others_at_most=1", "reference_batches=1", f"out={tmp_path}"),
        "overrides=hyperparameters.hidden_dim=16 hyperparameters.batch_size=8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((tmp_path / "performance.json").read_text())
    there = PRODUCTS if multiplies_bfloat16(torch.device("cpu")) else ["fp32"]
    assert len(results["ratios"]) == 6 + 2 * len(there)
    assert all(ratio["value"] > 0 for ratio in results["ratios"] if ratio["unit"] == "×")
    samples = results["measurements"][0]["samples"]
    assert set(samples["product fp32"]["rounds"][0]) == {"train", "evaluate", "write"}
    stages = {stage for stage in samples["stages fp32"]["rounds"][0] if not stage.startswith("evaluation")}
    forward = {f"forward: {s}" for s in ("projection", "speaker_embedding", "denoiser", "graph", "gate", "classifier")}
    assert stages >= forward | {"forward: objective", "data", "backward", "optimiser", "framework"}
    for ratio in results["ratios"]:
        assert ratio["quantity"] in done.stdout
        assert ratio["quantity"] in (tmp_path / "performance.md").read_text()
