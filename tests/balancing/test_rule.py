"""From scores to dropout probabilities: golden numbers, a loop, and the published examples."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from merc.balancing import dropout_probabilities

RELEASED = {"scale": 0.9, "rectify": True, "positive_only": True, "skip_below": 1e-5}
PAPER = {"scale": 0.9, "rectify": False, "positive_only": False, "skip_below": 0.0}


def by_loops(scores: list[float], base: float, rectify: bool, positive_only: bool, skip_below: float) -> list[float]:
    probabilities = []
    for m, own in enumerate(scores):
        ratios = [own / (p + 1e-5) - 1 for j, p in enumerate(scores) if j != m and p >= skip_below]
        if not ratios:
            probabilities.append(0.0)
            continue
        weights = torch.tensor(ratios, dtype=torch.float64).relu().softmax(0).tolist()
        average = sum(w * (max(r, 0) if rectify else r) for w, r in zip(weights, ratios, strict=True)) / len(ratios)
        q = min(max(base * (1 + 0.9 * average), 0.0), 1.0)
        probabilities.append(0.0 if positive_only and average <= 0 else q)
    return probabilities


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 1e-6, 0.2, 0.35, 0.36, 0.8, 1.0]), min_size=1, max_size=4),
    rectify=st.booleans(),
    positive_only=st.booleans(),
    skip_below=st.sampled_from([0.0, 1e-5]),
)
def test_equal_to_loops(scores: list[float], rectify: bool, positive_only: bool, skip_below: float) -> None:
    options = {"rectify": rectify, "positive_only": positive_only, "skip_below": skip_below}
    ours = dropout_probabilities(torch.tensor(scores, dtype=torch.float64), 0.3, 0.9, **options)
    assert ours.tolist() == pytest.approx(by_loops(scores, 0.3, **options), abs=1e-9)


@pytest.mark.parametrize("base", [0.2, 0.3, 0.7])
def test_released_rule_equals_golden_numbers(golden_files: list[Path], base: float) -> None:
    cases = [golden for path in golden_files if "balance.performance.text_visual_audio" in (golden := load_file(path))]
    assert cases
    for golden in cases:
        ours = dropout_probabilities(golden["balance.performance.text_visual_audio"], base, **RELEASED)
        torch.testing.assert_close(ours, golden[f"balance.q.base_{base}"], atol=1e-6, rtol=0)


def test_the_paper_also_drops_the_weakest_modality_and_equal_ones() -> None:
    q = dropout_probabilities(torch.tensor([0.68, 0.37, 0.60]), 0.3, **PAPER)
    assert q.argmin() == 1
    assert 0.2 < q[1] < 0.3
    equal = dropout_probabilities(torch.full((3,), 0.5), 0.3, **PAPER)
    assert equal.tolist() == pytest.approx([0.3] * 3, abs=1e-4)
    assert dropout_probabilities(torch.full((3,), 0.5), 0.3, **RELEASED).tolist() == [0.0] * 3


def test_a_lone_modality_is_never_dropped() -> None:
    assert dropout_probabilities(torch.tensor([0.9]), 0.3, **PAPER).tolist() == [0.0]
