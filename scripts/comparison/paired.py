"""Two treatments on the same patients, each with several seeds: what differs, by how much, and how
sure that is.

With l_ps = ln(value) of patient p and seed s: d_p = mean_s l²_ps − mean_s l¹_ps, one number a
patient, because seeds of one patient are not independent. Reported, as ratios second/first − 1 in
per cent: the Hodges-Lehmann estimate (median of all pairwise means of d), a BCa interval of the
mean over patients, an interval that resamples patients and seeds within them (percentile), the
matched-pairs rank biserial correlation, and Wilcoxon's signed rank test (exact), with Holm's
correction over all tests that are shown together.

Refs: Hodges & Lehmann 1963; Efron 1987 (BCa); Kerby 2014, doi 10.2466/11.IT.3.1 (rank biserial);
Holm 1979.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, rankdata, wilcoxon

#: With fewer patients the exact two-sided test cannot reach 0.05 (2/2⁵ = 0.06), whatever the data.
LEAST_FOR_TEST = 6
#: Fewer have no spread that a bootstrap could resample.
LEAST_FOR_INTERVAL = 4
_RESAMPLES = 4000


def compare(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int
) -> dict[str, Any]:
    """first, second: ln(values) [patient][seed], the same patients. Numbers that cannot be had are
    None.

    Returns patients, seeds (pairs of counts), change_percent, low/high_percent (BCa),
    cluster_low/high_percent, rank_biserial, p.
    """
    d = np.array([np.mean(b) - np.mean(a) for a, b in zip(first, second, strict=True)])
    counts = {
        "patients": len(d),
        "seeds_first": sum(map(len, first)),
        "seeds_second": sum(map(len, second)),
    }
    intervals = dict.fromkeys(
        ("low_percent", "high_percent", "cluster_low_percent", "cluster_high_percent")
    )
    change = _percent(hodges_lehmann(d))
    out: dict[str, Any] = {
        **counts,
        "change_percent": change,
        **intervals,
        "rank_biserial": rank_biserial(d),
        "p": None,
    }
    if len(d) >= LEAST_FOR_INTERVAL and np.ptp(d) > 1e-12:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # degenerate resamples: the interval is then not finite, and left out
            found = bootstrap(
                (d,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            out |= {"low_percent": _percent(found.low), "high_percent": _percent(found.high)}
        low, high = cluster_interval(first, second, seed)
        out |= {"cluster_low_percent": _percent(low), "cluster_high_percent": _percent(high)}
    if len(d) >= LEAST_FOR_TEST and np.any(np.abs(d) > 1e-12):
        out["p"] = float(wilcoxon(d, zero_method="pratt", method="auto").pvalue)
    return out


def _percent(log_ratio: float) -> float:
    return float(100.0 * np.expm1(log_ratio))


def hodges_lehmann(d: np.ndarray) -> float:
    """Median of the means of all pairs (each with itself too)."""
    i, j = np.triu_indices(len(d))
    return float(np.median(0.5 * (d[i] + d[j])))


def rank_biserial(d: np.ndarray) -> float | None:
    """(W₊ − W₋)/(W₊ + W₋) of the ranks of |d|: 1 when all patients rise, −1 when all fall. None
    when nothing differs."""
    d = d[np.abs(d) > 1e-12]
    if not len(d):
        return None
    ranks = rankdata(np.abs(d))
    return float(np.sum(np.sign(d) * ranks) / ranks.sum())


def cluster_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, patients resampled, and seeds within
    them."""
    random, n = np.random.default_rng(seed), len(first)
    picked = random.integers(0, n, (_RESAMPLES, n))
    differences = np.empty((_RESAMPLES, n))
    for patient in range(n):
        here = picked == patient
        a, b = (np.asarray(values[patient], float) for values in (first, second))
        drawn = [
            x[random.integers(0, len(x), (int(here.sum()), len(x)))].mean(axis=1) for x in (a, b)
        ]
        differences[here] = drawn[1] - drawn[0]
    low, high = np.percentile(differences.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p_holm: sorted p times the number of hypotheses that are left, never
    falling."""
    tested = sorted(
        (i for i, r in enumerate(rows) if r["p"] is not None), key=lambda i: rows[i]["p"]
    )
    out, running = [r | {"p_holm": None} for r in rows], 0.0
    for rank, i in enumerate(tested):
        running = max(running, min(1.0, rows[i]["p"] * (len(tested) - rank)))
        out[i]["p_holm"] = running
    return out
