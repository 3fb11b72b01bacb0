"""Statistics against SciPy, scikit-learn and the exact distribution, and by simulation: do they keep their promises?"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from merc.metrics import scores_from_confusion
from merc.reporting import statistics
from merc.reporting.statistics import Array

CLASSES = 3
ACCURACY, WEIGHTED_F1 = 0, 2


def simulate(
    rng: np.random.Generator,
    dialogues: int = 80,
    seeds: int = 3,
    gain: float = 0.0,
    seed_sd: float = 0.0,
    length: int = 8,
) -> tuple[Array, Array]:
    """Confusions of two variants, the first more often right by ``gain``.

    Dialogues differ in difficulty, which both variants feel; each variant finds some harder than the other does; what
    the seeds get right is correlated; ``seed_sd`` moves whole runs.
    """
    labels_DL = rng.choice(CLASSES, (dialogues, length), p=(0.5, 0.3, 0.2))
    difficulty_D1 = rng.normal(0, 0.5, (dialogues, 1))
    variants = []
    for sign in (0.5, -0.5):
        own_D1 = difficulty_D1 + rng.normal(0, 0.3, (dialogues, 1))
        luck_S = rng.normal(0, seed_sd, seeds)
        noise_DL = rng.normal(0, 1, (dialogues, length))
        confusions = []
        for luck in luck_S:
            ability = 0.5 + sign * gain + luck + own_D1 + 0.7 * noise_DL + 0.7 * rng.normal(0, 1, (dialogues, length))
            wrong_DL = (labels_DL + rng.integers(1, CLASSES, labels_DL.shape)) % CLASSES
            predictions_DL = np.where(ability > 0, labels_DL, wrong_DL)
            index = np.repeat(np.arange(dialogues), length)
            confusions.append(statistics.dialogue_confusions(index, labels_DL.ravel(), predictions_DL.ravel(), CLASSES))
        variants.append(np.stack(confusions))
    return variants[0], variants[1]


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_scores_equal_scikit_learn_and_the_training_metrics(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, rows))
    dialogues = np.sort(rng.integers(0, 5, rows))
    names = [f"class {index}" for index in range(classes)]
    confusions = statistics.dialogue_confusions(dialogues, labels, predictions, classes)
    ours = dict(zip(statistics.measure_names(names), statistics.scores(confusions.sum(0)), strict=True))

    np.testing.assert_array_equal(confusions.sum(0), confusion_matrix(labels, predictions, labels=range(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=0
    )
    assert ours["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert ours["weighted_f1"] == pytest.approx((f1 * support).sum() / rows)
    assert [ours[f"precision/{name}"] for name in names] == pytest.approx(list(precision))
    assert [ours[f"recall/{name}"] for name in names] == pytest.approx(list(recall))
    assert [ours[f"f1/{name}"] for name in names] == pytest.approx(list(f1))

    training = scores_from_confusion(torch.from_numpy(confusions.sum(0)), names)
    for measure in ("accuracy", "weighted_precision", "weighted_f1", "macro_f1"):
        assert ours[measure] == pytest.approx(training[measure], abs=1e-12)


def test_mean_and_sd_are_those_of_a_sample() -> None:
    assert statistics.mean_and_sd([1.0, 2.0, 6.0]) == pytest.approx((3.0, np.std([1, 2, 6], ddof=1)))
    mean, sd = statistics.mean_and_sd([2.0])
    assert mean == 2.0
    assert math.isnan(sd)


@pytest.mark.parametrize("freedom", [4, 8, 30, 279])
@pytest.mark.parametrize("probability", [0.05, 0.9, 0.975, 0.995])
def test_quantiles_of_t_are_scipys(probability: float, freedom: int) -> None:
    assert statistics.t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=0.005)


def accuracies_of(confusions_SDCC: Array) -> Array:
    """(D,) mean over seeds of the share of right utterances; all dialogues are equally long."""
    correct = np.diagonal(confusions_SDCC, axis1=-2, axis2=-1).sum(-1)
    return (correct / confusions_SDCC.sum((-2, -1))).mean(0)


def test_the_bootstrap_of_the_accuracy_is_scipys() -> None:
    first, _ = simulate(np.random.default_rng(1), dialogues=60)
    ours = statistics.bootstrap(first, resamples=20_000)[:, ACCURACY]
    theirs = stats.bootstrap((accuracies_of(first),), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert ours.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.03)
    assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(tuple(theirs.confidence_interval), abs=0.002)


def test_the_interval_is_wider_than_percentiles_by_what_student_says() -> None:
    first, _ = simulate(np.random.default_rng(1), dialogues=10)
    replicates = statistics.bootstrap(first, resamples=50_000)
    low, high = statistics.interval(replicates, dialogues=10)[:, ACCURACY]
    plain_low, plain_high = np.quantile(replicates[:, ACCURACY], [0.025, 0.975])
    expected = stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975) * math.sqrt(10 / 9)
    assert (high - low) / (plain_high - plain_low) == pytest.approx(expected, rel=0.05)


def test_one_dialogue_has_no_interval() -> None:
    assert np.isnan(statistics.interval(np.zeros((10, 2)), dialogues=1)).all()


def test_the_swap_test_is_scipys_permutation_test() -> None:
    first, second = simulate(np.random.default_rng(3), dialogues=40, gain=0.12)
    ours = statistics.compare(first, second, resamples=20_000).p_runs[ACCURACY]
    theirs = stats.permutation_test(
        (accuracies_of(first), accuracies_of(second)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=4,
    ).pvalue
    assert 0.005 < theirs < 0.5
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(theirs / 20_000))


def test_the_swap_test_of_weighted_f1_approaches_all_swaps_enumerated() -> None:
    first, second = simulate(np.random.default_rng(5), dialogues=9, seeds=2, gain=0.4)
    names = statistics.measure_names("abc")

    def difference(swaps: tuple[int, ...]) -> float:
        one, two = first.copy(), second.copy()
        for dialogue, swap in enumerate(swaps):
            if swap:
                one[:, dialogue], two[:, dialogue] = second[:, dialogue], first[:, dialogue]
        one_S, two_S = (
            [
                scores_from_confusion(torch.from_numpy(confusion), "abc")[names[WEIGHTED_F1]]
                for confusion in variant.sum(1)
            ]
            for variant in (one, two)
        )
        return float(np.mean(one_S) - np.mean(two_S))

    observed = difference((0,) * 9)
    exact = np.mean([abs(difference(s)) >= abs(observed) - 1e-12 for s in itertools.product((0, 1), repeat=9)])
    assert statistics.compare(first, second, resamples=20_000).p_runs[WEIGHTED_F1] == pytest.approx(exact, abs=0.015)


def test_a_variant_does_not_differ_from_itself() -> None:
    first, second = simulate(np.random.default_rng(6), gain=0.2)
    same = statistics.compare(first, first, resamples=200)
    assert (same.difference == 0).all()
    assert (same.low == 0).all()
    assert (same.high == 0).all()
    assert (same.p_runs == 1).all()
    assert (same.p_variants == 1).all()
    there = statistics.compare(first, second, resamples=200)
    back = statistics.compare(second, first, resamples=200)
    np.testing.assert_allclose(there.difference, -back.difference)
    np.testing.assert_allclose(there.low, -back.high, atol=1e-12)
    np.testing.assert_allclose(there.p_runs, back.p_runs, atol=0.15)


def test_the_same_seed_draws_the_same() -> None:
    first, second = simulate(np.random.default_rng(7))
    one, again, other = (statistics.compare(first, second, 300, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.p_runs, again.p_runs)
    np.testing.assert_array_equal(one.low, again.low)
    assert (one.low != other.low).any()


def test_a_single_seed_says_nothing_about_other_seeds() -> None:
    first, second = simulate(np.random.default_rng(8), seeds=1, gain=0.5)
    comparison = statistics.compare(first, second, resamples=200)
    assert np.isnan(comparison.p_variants).all()
    assert np.isnan(comparison.effect).all()
    assert comparison.p_runs[ACCURACY] < 0.05


def test_holm_is_what_its_definition_says() -> None:
    """Hypotheses are rejected one after the other, the i-th smallest at level/(m − i), until the first that is not."""
    rng = np.random.default_rng(9)
    for _ in range(200):
        p_values = list(rng.uniform(0, 0.1, rng.integers(1, 8)))
        level = float(rng.uniform(0.01, 0.2))
        rejected = set()
        for rank, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (len(p_values) - rank):
                break
            rejected.add(int(index))
        adjusted = statistics.holm(p_values)
        assert {index for index, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = statistics.holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


def test_hedges_g_is_unbiased_where_cohens_d_is_not() -> None:
    rng = np.random.default_rng(10)
    first, second = rng.normal(1, 1, (3, 40_000)), rng.normal(0, 1, (3, 40_000))
    assert statistics.hedges_g(first, second).mean() == pytest.approx(1, abs=0.03)
    pooled = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / 2)
    assert ((first - second).mean(0) / pooled).mean() > 1.2


# Simulations: what is promised holds in the long run. The bounds are four standard errors of the simulation wide.

ROUNDS = 1000
RESAMPLES = 600


def rate_bounds(rate: float) -> tuple[float, float]:
    spread = 4 * math.sqrt(rate * (1 - rate) / ROUNDS)
    return rate - spread, rate + spread


@pytest.mark.parametrize("dialogues", [31, 120])
def test_intervals_cover_what_they_promise(dialogues: int) -> None:
    rng = np.random.default_rng(dialogues)
    # The truth: many dialogues of the same kind.
    first, second = simulate(rng, dialogues=60_000, seeds=1, gain=0.3)
    truth = statistics.seed_scores(first)[0]
    truth_difference = truth - statistics.seed_scores(second)[0]
    covered, covered_difference = [], []
    for _ in range(ROUNDS):
        first, second = simulate(rng, dialogues=dialogues, seeds=2, gain=0.3)
        low, high = statistics.interval(statistics.bootstrap(first, RESAMPLES), dialogues)
        covered.append((low <= truth) & (truth <= high))
        comparison = statistics.compare(first, second, RESAMPLES)
        covered_difference.append((comparison.low <= truth_difference) & (truth_difference <= comparison.high))
    low_rate, high_rate = rate_bounds(0.95)
    for rates in (np.mean(covered, 0), np.mean(covered_difference, 0)):
        assert low_rate <= rates[[ACCURACY, WEIGHTED_F1]].min()
        assert rates[[ACCURACY, WEIGHTED_F1]].max() <= high_rate


def test_planted_nulls_are_rejected_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(11)
    p_values = []
    for _ in range(ROUNDS):
        first, second = simulate(rng)
        p_values.append(statistics.compare(first, second, RESAMPLES).p_runs)
    rates = (np.array(p_values) <= 0.05).mean(0)
    assert rates.max() <= rate_bounds(0.05)[1]
    assert rates[[ACCURACY, WEIGHTED_F1]].min() > 0.01, "the test never rejects"


def test_seeds_with_dialogues_of_their_own_are_drawn_independently() -> None:
    """The variance of a mean of independent means is the mean of their variances over their number."""
    rng = np.random.default_rng(15)
    pairs = [simulate(rng, dialogues=dialogues, seeds=1, gain=0.2) for dialogues in (60, 90, 120)]
    each = [statistics.bootstrap(first, 4000).var(0) for first, _ in pairs]
    together = statistics.bootstrap_groups([first for first, _ in pairs], 4000).var(0)
    np.testing.assert_allclose(together, np.sum(each, 0) / 9, rtol=0.15)
    comparison = statistics.compare_groups(pairs, 200)
    expected = np.mean([statistics.compare(*pair, 200).difference for pair in pairs], 0)
    np.testing.assert_allclose(comparison.difference, expected)


def test_planted_nulls_on_dialogues_of_their_own_are_rejected_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(16)
    p_values = []
    for _ in range(ROUNDS // 2):
        pairs = [simulate(rng, dialogues=50, seeds=1) for _ in range(3)]
        p_values.append(statistics.compare_groups(pairs, RESAMPLES // 2).p_runs)
    rates = (np.array(p_values) <= 0.05).mean(0)
    assert rates.max() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / (ROUNDS // 2))
    assert rates[[ACCURACY, WEIGHTED_F1]].min() > 0.01, "the test never rejects"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_lucky_seeds_are_no_effect(seeds: int) -> None:
    """Chance in whole runs makes these runs different, which one test says, but not the variants."""
    rng = np.random.default_rng(12)
    runs, variants = [], []
    for _ in range(ROUNDS):
        comparison = statistics.compare(*simulate(rng, seeds=seeds, seed_sd=0.15), RESAMPLES)
        runs.append(comparison.p_runs <= 0.05)
        variants.append(comparison.p_variants <= 0.05)
    assert np.mean(variants, 0)[[ACCURACY, WEIGHTED_F1]].max() <= rate_bounds(0.05)[1]
    assert np.mean(runs, 0)[ACCURACY] > 0.15


def test_planted_effects_are_found() -> None:
    rng = np.random.default_rng(13)
    found = []
    for _ in range(100):
        comparison = statistics.compare(*simulate(rng, gain=0.6, seed_sd=0.05), RESAMPLES)
        found.append([comparison.p_runs[WEIGHTED_F1] <= 0.05, comparison.p_variants[WEIGHTED_F1] <= 0.05])
    assert np.mean(found, 0).min() > 0.8


def test_holm_keeps_the_error_of_a_whole_table() -> None:
    """Five comparisons without a difference: in how many tables is any of them significant?"""
    rng = np.random.default_rng(14)
    false_alarms = 0
    for _ in range(200):
        p_values = []
        for _ in range(5):
            first, second = simulate(rng, dialogues=60, seeds=1)
            p_values.append(float(statistics.compare(first, second, 200).p_runs[WEIGHTED_F1]))
        false_alarms += min(statistics.holm(p_values)) <= 0.05
    assert false_alarms / 200 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)
