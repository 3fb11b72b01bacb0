"""What scores of a few runs on some dialogues say: intervals, tests and effect sizes. Plain numpy, without torch.

The unit that is resampled and swapped is the dialogue: the utterances of one are not independent. Every run is its
confusion matrix per dialogue, since all scores follow from sums of these; a resample is then a matrix product.

Shape suffixes: S seeds, D dialogues, C classes, M measures, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merc.reporting.tables import SUMMARY

Array = NDArray[np.float64]

PER_CLASS = ("precision", "recall", "f1")


def measure_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The M = 4 + 3C measures of :func:`scores`: ``accuracy`` …, ``precision/<class>`` …, ``f1/<class>`` …."""
    return (*SUMMARY, *(f"{measure}/{label}" for measure in PER_CLASS for label in classes))


def dialogue_confusions(dialogues: ArrayLike, labels: ArrayLike, predictions: ArrayLike, classes: int) -> Array:
    """Count what was predicted for what, in each dialogue.

    Args:
        dialogues: (N,) index of the dialogue of each utterance, 0 … D−1.
        labels: (N,) true class ids.
        predictions: (N,) predicted class ids.
        classes: C.

    Returns:
        (D, C, C) counts, rows the labels and columns the predictions.
    """
    dialogue, label, prediction = (np.asarray(ids, dtype=np.int64) for ids in (dialogues, labels, predictions))
    count = int(dialogue.max(initial=-1)) + 1
    cells = (dialogue * classes + label) * classes + prediction
    return np.bincount(cells, minlength=count * classes**2).reshape(count, classes, classes).astype(np.float64)


def scores(confusions: Array) -> Array:
    """All measures of confusion matrices, as fractions; equal to :func:`merc.metrics.scores_from_confusion`.

    Args:
        confusions: (…, C, C) counts, rows the labels and columns the predictions.

    Returns:
        (…, M), in the order of :func:`measure_names`. What has no utterance to be computed from is 0.
    """
    correct = np.diagonal(confusions, axis1=-2, axis2=-1)
    # Products with ones: numpy is slow at sums over a short axis.
    ones = np.ones(confusions.shape[-1])
    support, predicted = confusions @ ones, ones @ confusions
    precision = correct / predicted.clip(1)
    recall = correct / support.clip(1)
    f1 = 2 * correct / (support + predicted).clip(1)
    total = (support @ ones).clip(1)
    summary = [
        correct @ ones / total,
        np.einsum("...c,...c->...", support, precision) / total,
        np.einsum("...c,...c->...", support, f1) / total,
        f1 @ ones / ones.size,
    ]
    return np.concatenate([np.stack(summary, -1), precision, recall, f1], -1)


def seed_scores(confusions_SDCC: Array) -> Array:
    """(S, M) scores of each seed on all dialogues."""
    return scores(confusions_SDCC.sum(1))


def mean_and_sd(values: ArrayLike) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1); the latter is NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def bootstrap(confusions_SDCC: Array, resamples: int, seed: int = 0) -> Array:
    """Scores on resampled dialogues, averaged over seeds.

    Every call with as many dialogues draws the same resamples, so that the difference of two calls on the same
    dialogues is a paired bootstrap.

    Args:
        confusions_SDCC: counts per seed and dialogue.
        resamples: R, each of D dialogues drawn with replacement.
        seed: of the draws.

    Returns:
        (R, M).
    """
    seeds, dialogues, classes, _ = confusions_SDCC.shape
    drawn_RD = _draws(dialogues, resamples, seed)
    sums = drawn_RD @ confusions_SDCC.swapaxes(0, 1).reshape(dialogues, -1)
    return scores(sums.reshape(resamples, seeds, classes, classes)).mean(1)


def bootstrap_groups(groups: Sequence[Array], resamples: int, seed: int = 0) -> Array:
    """The same over groups of seeds, each with dialogues of its own, which are resampled independently.

    Args:
        groups: counts per seed and dialogue of each group.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, M), averaged over all seeds.
    """
    replicates = [bootstrap(counts_SDCC, resamples, seed + index) for index, counts_SDCC in enumerate(groups)]
    return np.average(replicates, axis=0, weights=[len(counts_SDCC) for counts_SDCC in groups])


@lru_cache(maxsize=8)
def _draws(dialogues: int, resamples: int, seed: int) -> Array:
    """(R, D): how often each resample holds each dialogue."""
    uniform = np.full(dialogues, 1 / dialogues)
    return np.random.default_rng(seed).multinomial(dialogues, uniform, size=resamples).astype(np.float64)


def interval(replicates_RM: Array, dialogues: int, level: float = 0.95) -> Array:
    """The expanded percentile interval of bootstrap replicates.

    Plain percentiles are too narrow for few dialogues, by what a normal interval with the biased variance is narrower
    than one of Student's t; taking them further out repairs that (Hesterberg 2015, The American Statistician 69(4),
    section 3.3).

    Args:
        replicates_RM: from :func:`bootstrap`, or the difference of two of them.
        dialogues: D that were resampled.
        level: of confidence.

    Returns:
        (2, M) lower and upper ends; NaN for a single dialogue.
    """
    if dialogues < 2:
        return np.full((2, replicates_RM.shape[1]), math.nan)
    outside = NormalDist().cdf(-math.sqrt(dialogues / (dialogues - 1)) * t_quantile((1 + level) / 2, dialogues - 1))
    return np.quantile(replicates_RM, [outside, 1 - outside], axis=0)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal quantile (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Comparison:
    """What sets two variants apart, per measure; every field is (M,).

    Args:
        difference: mean of the first minus mean of the second, over seeds.
        low: lower end of its interval over dialogues.
        high: upper end.
        p_runs: of the null hypothesis that these very runs are equally good on dialogues like these.
        p_variants: of the null hypothesis that the variants are, with other seeds too; NaN for a single seed.
        effect: Hedges' g over seeds; NaN for a single seed.
    """

    difference: Array
    low: Array
    high: Array
    p_runs: Array
    p_variants: Array
    effect: Array


def compare(first_SDCC: Array, second_SDCC: Array, resamples: int, level: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two variants on the same dialogues, runs of the same seed forming pairs.

    Args:
        first_SDCC: counts of the first variant.
        second_SDCC: of the second; the same seeds and dialogues in the same order.
        resamples: R, of the bootstrap and of the test.
        level: of confidence of the interval.
        seed: of the draws.
    """
    return compare_groups([(first_SDCC, second_SDCC)], resamples, level, seed)


def compare_groups(
    pairs: Sequence[tuple[Array, Array]], resamples: int, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two variants whose seeds may have been tested on different dialogues, as generated ones are.

    Args:
        pairs: for each group of seeds on the same dialogues, the counts of both variants as in :func:`compare`.
        resamples: R, of the bootstrap and of the test; dialogues of different groups are drawn independently.
        level: of confidence of the interval.
        seed: of the draws.
    """
    seeds = [len(first) for first, _ in pairs]
    first_SM = np.concatenate([seed_scores(first) for first, _ in pairs])
    second_SM = np.concatenate([seed_scores(second) for _, second in pairs])
    difference = (first_SM - second_SM).mean(0)
    replicates = bootstrap_groups([first for first, _ in pairs], resamples, seed)
    replicates = replicates - bootstrap_groups([second for _, second in pairs], resamples, seed)
    low, high = interval(replicates, min(first.shape[1] for first, _ in pairs), level)
    swapped = [swapped_differences(*pair, resamples, seed + index) for index, pair in enumerate(pairs)]
    null = np.average(swapped, axis=0, weights=seeds)
    chance = null + seed_chance(first_SM - second_SM, resamples, seed)
    effect = hedges_g(first_SM, second_SM)
    return Comparison(difference, low, high, p_value(difference, null), p_value(difference, chance), effect)


def swapped_differences(first_SDCC: Array, second_SDCC: Array, rounds: int, seed: int = 0) -> Array:
    """Differences when it is left to chance, for each dialogue, which variant made which predictions.

    Paired approximate randomisation (Noreen 1989; Yeh 2000, arXiv:cs/0008005). A dialogue is swapped as a whole and in
    all seeds at once, because the seeds find the same dialogues hard.

    Returns:
        (R, M) differences of the means over seeds.
    """
    seeds, dialogues, classes, _ = first_SDCC.shape
    swapped_RD = _swaps(dialogues, rounds, seed)
    gain = (second_SDCC - first_SDCC).swapaxes(0, 1).reshape(dialogues, -1)
    moved = (swapped_RD @ gain).reshape(rounds, seeds, classes, classes)
    first, second = first_SDCC.sum(1) + moved, second_SDCC.sum(1) - moved
    return (scores(first) - scores(second)).mean(1)


@lru_cache(maxsize=8)
def _swaps(dialogues: int, rounds: int, seed: int) -> Array:
    return np.random.default_rng([seed, 1]).integers(0, 2, (rounds, dialogues)).astype(np.float64)


def seed_chance(differences_SM: Array, rounds: int, seed: int = 0) -> Array:
    """What the choice of S seeds alone may add to a mean difference: draws of Student's t with S − 1 degrees.

    Added to :func:`swapped_differences` it makes a test of two uncertain means of unknown variance, as Behrens and
    Fisher have it. The variation of single utterances is in both parts, so the test errs on the side of caution.

    Returns:
        (R, M); NaN for a single seed, whose chance is unknown.
    """
    seeds, measures = differences_SM.shape
    if seeds < 2:
        return np.full((rounds, measures), math.nan)
    draws_R1 = np.random.default_rng([seed, 2]).standard_t(seeds - 1, (rounds, 1))
    return draws_R1 * differences_SM.std(0, ddof=1) / math.sqrt(seeds)


def p_value(observed_M: Array, null_RM: Array) -> Array:
    """(M,) two-sided p = (1 + rounds at least as extreme as the observation) / (1 + R); NaN where the null is."""
    # The slack keeps rounds that equal the observation but for rounding errors.
    extreme = np.abs(null_RM) >= np.abs(observed_M) - 1e-12
    p = (1 + extreme.sum(0)) / (1 + len(null_RM))
    return np.where(np.isnan(null_RM).any(0), math.nan, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the result is below the family-wise level. NaN is no hypothesis."""
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def hedges_g(first_SM: Array, second_SM: Array) -> Array:
    """Difference of means in units of the pooled standard deviation over seeds, (M,).

    Cohen's d overstates effects for few seeds, by a quarter for three; the exact factor of Hedges (1981) corrects that.
    NaN for a single seed, and where no seed differs from another.
    """
    seeds, measures = first_SM.shape
    if seeds < 2:
        return np.full(measures, math.nan)
    pooled = np.sqrt((first_SM.var(0, ddof=1) + second_SM.var(0, ddof=1)) / 2)
    freedom = 2 * seeds - 2
    factor = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    difference = (first_SM - second_SM).mean(0)
    return factor * np.divide(difference, pooled, out=np.full(measures, math.nan), where=pooled > 0)
