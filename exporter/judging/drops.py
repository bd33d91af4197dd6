"""How much worse one model is than another on the same samples, and how sure that is.

Both models answer the same samples, so the comparison is paired: what both get right or both get wrong says nothing,
and only the samples on which they differ make the interval wide. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import Drop
from exporter.judging.metrics import Metric, Outputs, top1, top1_hits

NORMAL_95 = 1.959964
RESAMPLES = 200
LARGEST_BOOTSTRAP = 200 * 20_000
"""Resamples times samples: what a metric of the user's own may be asked to score."""


def drop_by_metric(
    metric: Metric, labels: NDArray[np.generic], reference: Sequence[Outputs], outputs: Sequence[Outputs]
) -> Drop:
    """Return what `outputs` lose of `metric` against `reference`, all in the order of `labels`.

    Top-1: the difference of two paired proportions with the adjusted Wald interval of Agresti and Min 2005, "Simple
    improved confidence intervals for comparing matched proportions". Any other metric: a paired bootstrap (Efron
    and Tibshirani 1993, percentile interval; the same resamples for both; the seed is fixed).
    """
    if metric is top1:
        return _drop_of_hits(top1_hits(reference, labels), top1_hits(outputs, labels))
    points = 100.0 * (metric(reference, labels) - metric(outputs, labels))

    def difference(picked: NDArray[np.intp]) -> float:
        chosen = labels[picked]
        first = metric([reference[index] for index in picked], chosen)
        return 100.0 * (first - metric([outputs[index] for index in picked], chosen))

    low, high = _bootstrap(difference, len(reference))
    return Drop(points, min(low, points), max(high, points), len(reference))


def drop_of_agreement(verdicts: Sequence[Sequence[bool]]) -> Drop:
    """Return the share of positions that answer another class than the float model, in points.

    `verdicts` hold one list a sample. One position a sample: Wilson's interval; more: a bootstrap over samples,
    because the positions of one sample (tokens, pixels) stand or fall together.
    """
    counts = np.asarray([len(verdict) for verdict in verdicts])
    wrong = np.asarray([len(verdict) - sum(verdict) for verdict in verdicts])
    share = float(wrong.sum() / counts.sum())
    if counts.max() == 1:
        low, high = _wilson(share, len(verdicts))
    else:
        low, high = _bootstrap(
            lambda picked: float(wrong[picked].sum() / counts[picked].sum()), len(verdicts)
        )
        low, high = min(low, share), max(high, share)
    # Exact agreement leaves no loss that could be noise: the interval then starts at zero.
    return Drop(100.0 * share, 100.0 * low if share else 0.0, 100.0 * high, len(verdicts))


def _drop_of_hits(reference: NDArray[np.bool_], hits: NDArray[np.bool_]) -> Drop:
    count = len(hits)
    lost, won = int(np.sum(reference & ~hits)), int(np.sum(~reference & hits))
    adjusted = count + 2
    centre = (lost - won) / adjusted
    spread = (lost + won + 1) - (lost - won) ** 2 / adjusted
    half = float(NORMAL_95 * np.sqrt(spread) / adjusted)
    return Drop(100.0 * (lost - won) / count, 100.0 * (centre - half), 100.0 * (centre + half), count)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson 1927, "Probable inference, the law of succession, and statistical inference"."""
    weight = NORMAL_95**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = NORMAL_95 / (1 + weight) * np.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, centre - float(half)), min(1.0, centre + float(half))


def _bootstrap(statistic: Callable[[NDArray[np.intp]], float], count: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    rounds = max(50, min(RESAMPLES, LARGEST_BOOTSTRAP // max(1, count)))
    values = [statistic(generator.integers(0, count, count)) for _ in range(rounds)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
