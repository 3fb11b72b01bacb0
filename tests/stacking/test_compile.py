"""Compiled training steps: the same numbers from one graph of one size."""

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor
from torch._inductor import list_mode_options

from merc.config import compose
from merc.data.conversation import ConversationBatch
from merc.data.stacked import Frame, stack_batches
from merc.errors import MercError
from merc.reporting.run_folder import RunFolder, RunLockedError, claim, run_path
from merc.stacking.module import Member
from merc.stacking.refusals import MODES, refuse_stacking
from merc.train import train
from tests.stacking.conftest import STILL, Captured, stack
from tests.stacking.test_module import CHOICES, LENGTHS, Make, Members, sgd, steps
from tests.stacking.test_training import PowerCutError, alone, cut, folders, outcome, together


def batches(make_batch: Make, step: int) -> list[ConversationBatch]:
    """One of each seed, of other sizes in every step."""
    return [make_batch(LENGTHS[(seed + step) % 3], seed=seed + 10 * step) for seed in range(2)]


FRAME = Frame.of_any([[length for lengths in LENGTHS for length in lengths]], batch_size=4)


@pytest.mark.parametrize(
    ("choice", "precision"),
    [
        (CHOICES[0], torch.float32),
        *(pytest.param(choice, torch.float32, marks=pytest.mark.slow) for choice in CHOICES[1:]),
        pytest.param(CHOICES[0], torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_steps_equal_others(
    make_members: Members, make_batch: Make, captured: Captured, choice: str, precision: torch.dtype
) -> None:
    members: list[Member] = make_members(2, *choice.split(), *STILL)

    def losses(mode: str | None) -> tuple[list[float], dict[str, Tensor]]:
        stacked = stack(members, mode, FRAME)

        def loss(step: int) -> Tensor:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                return stacked.training_step(batches(make_batch, step), step)

        return steps(sgd(stacked.stacked), loss, 3), dict(stacked.seeds[1].state_dict())

    (compiled, compiled_state), (others, other_state) = losses("default"), losses(None)
    assert captured.graphs == 1
    assert compiled == pytest.approx(others, rel=1e-5)
    torch.testing.assert_close(compiled_state, other_state, rtol=1e-4, atol=1e-5)


@given(st.data())
def test_every_batch_of_every_seed_fits_into_the_frame(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=3))
    size = data.draw(st.integers(1, 14))
    chosen = [data.draw(st.permutations(own))[: data.draw(st.integers(1, size))] for own in lengths]
    own_batches = [of_lengths(own) for own in chosen]
    frame = Frame.of_any(lengths, size).fitting(own_batches, data.draw(st.integers(1, 8)))
    stacked = stack_batches(own_batches, frame)
    held_SBL = stacked.fields["frame"]
    assert held_SBL.shape == (len(lengths), frame.count, frame.longest)
    for own, held_BL, real_N in zip(chosen, held_SBL, stacked.real, strict=True):
        assert held_BL.sum(1)[: len(own)].tolist() == own
        assert held_BL.sum() == frame.rows == len(real_N)
        assert real_N.sum() == sum(own)


def of_lengths(lengths: Sequence[int]) -> ConversationBatch:
    zeros_N = torch.zeros(sum(lengths), dtype=torch.int64)
    return ConversationBatch({"text": torch.ones(len(zeros_N), 1)}, zeros_N, zeros_N, tuple(lengths))


def test_the_frame_holds_the_filler_of_a_seed_whose_dialogues_are_shorter() -> None:
    lengths = [[20] * 4, [1] * 7 + [20]]
    stacked = stack_batches([of_lengths(own[:4]) for own in lengths], Frame.of_any(lengths, 4))
    assert stacked.fields["frame"].shape == (2, 8, 20)


def test_modes_are_those_of_pytorch() -> None:
    assert set(MODES) < list_mode_options().keys()


@pytest.mark.parametrize("seeds", [1, 2])
def test_modes_are_checked(make_config: Callable[..., dict[str, Any]], seeds: int) -> None:
    with pytest.raises(MercError, match=r"compile=reduce_overhead is none of .*Did you mean 'reduce-overhead'\?"):
        refuse_stacking([make_config("compile=reduce_overhead")] * seeds)


def test_what_cannot_be_stacked_cannot_be_compiled(make_config: Callable[..., dict[str, Any]]) -> None:
    config = make_config("compile=default", "+trainer.accumulate_grad_batches=2")
    with pytest.raises(MercError, match=r"The run cannot be compiled: .*accumulate_grad_batches.* Leave compile=null"):
        refuse_stacking([config])


QUICK = ["graph=gat", "fusion=gated", "classifier=single_head", "objective=fused", "balancing=none"]  # to compile
SMALL = ("data.size=0.02", "hyperparameters.hidden_dim=8", "hyperparameters.heads=2", "trainer.max_epochs=2")


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    return train(compose([*QUICK, *SMALL, *STILL, f"run_dir={folder}", *overrides]))


def test_a_mistake_costs_nothing(tmp_path: Path, captured: Captured) -> None:
    metrics = run(tmp_path / "run", "compile=default")
    for mistake in ("compile=fast", "compile=default balancing=ogm_ge", "compile=default hyperparameters.dropout=2"):
        with pytest.raises(MercError):
            run(tmp_path / "run", *mistake.split(), "overwrite=true")
        assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")) == metrics


def test_a_compiled_run_is_logged_like_others(tmp_path: Path, captured: Captured) -> None:
    curves: list[dict[str, dict[int, float]]] = []
    for mode in ("default", "null"):
        run(tmp_path / mode, f"compile={mode}", "logger=tensorboard")
        events = EventAccumulator(str(tmp_path / mode / "tensorboard"))
        events.Reload()
        curves.append({tag: {x.step: x.value for x in events.Scalars(tag)} for tag in events.Tags()["scalars"]})
    ours, expected = curves
    assert ours.keys() == expected.keys()
    for tag, values in expected.items():
        assert ours[tag] == pytest.approx(values, rel=1e-4), tag


def test_a_finished_run_shows_its_scores_again(
    tmp_path: Path, captured: Captured, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, "compile=default")
    shown = capsys.readouterr().out
    assert shown.count("Run folder") == 1
    assert captured.graphs == 1
    assert run(tmp_path, "compile=default", "resume=true") == first
    assert captured.graphs == 1
    assert capsys.readouterr().out.count("Run folder") == 1
    with pytest.raises(MercError, match="resume=true"):
        run(tmp_path, "compile=default")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["1", "1,2"])
def test_compiled_runs_that_were_cut_off_go_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: Captured, seeds: str
) -> None:
    trained = partial(alone if seeds == "1" else together, seeds=seeds)
    trained(tmp_path / "whole", "compile=default")
    with monkeypatch.context() as patch:
        cut(patch, seed=int(seeds[-1]), epoch=1, before_writing=False)
        with pytest.raises(PowerCutError):
            trained(tmp_path / "cut", "compile=default")
    torch.manual_seed(12345)
    before = captured.graphs
    trained(tmp_path / "cut", "compile=default", "resume=true")
    assert captured.graphs > before
    assert list(map(outcome, folders(tmp_path / "cut"))) == list(map(outcome, folders(tmp_path / "whole")))


def test_a_compiled_run_leaves_alone_what_another_process_has(tmp_path: Path, captured: Captured) -> None:
    with claim(RunFolder(tmp_path), {}, resume=False, overwrite=False), pytest.raises(RunLockedError):
        run(tmp_path, "compile=default")
    assert captured.graphs == 0


def test_a_compiled_run_that_is_watched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MercError, match="Leave compile=null"):
        train(compose(["compile=default", f"run_dir={tmp_path}"]), [Callback()])


def test_compiling_is_no_part_of_a_run() -> None:
    one, other = (compose([f"compile={mode}"]) for mode in ("null", "default"))
    assert run_path(one, "name") == run_path(other, "name")


@pytest.mark.slow
def test_a_compiled_run(tmp_path: Path) -> None:
    def losses(mode: str) -> list[float]:
        run(tmp_path / mode, f"compile={mode}")
        with (tmp_path / mode / "metrics.csv").open(encoding="utf-8") as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file)]

    assert losses("default") == pytest.approx(losses("null"), rel=1e-4)
