"""Two treatments compared over the same seeds and the same test rows: how much better one is, and how surely.

A difference d[s, r] has an effect of the seed, an effect of the row and a rest. A claim about the method must hold for
other seeds *and* other rows, so both vary: the variance of the mean difference is

    (variance of the seeds' means) / S + (variance of the rows' means) / R - (variance of the rest) / (S R)

for crossed random effects (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007, section 3; the same
terms as in Clark's min F', Journal of Verbal Learning and Verbal Behavior 12, 1973), with Satterthwaite's degrees of
freedom. With five seeds a bootstrap of the seeds is too narrow: it leaves out both S / (S - 1) and Student's tails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FLIPS = 1 << 14
"""Sign patterns tried: all of them up to 14 seeds, beyond that a fixed draw of this many."""


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    difference: of the means, treatment - control.
    low, high: the confidence interval at LEVEL, over seeds and rows.
    p: two-sided, from the same distribution.
    flips_p: two-sided, from exchanging the two treatments' names in each seed; no less than 2 / 2**seeds.
    wins: seeds in which the treatment is better; a tie counts half.
    spread: standard deviation of the seeds' differences; `difference / spread` is the effect size d.
    """

    difference: float
    low: float
    high: float
    p: float
    flips_p: float
    wins: float
    spread: float
    seeds: int
    rows: int

    @property
    def effect(self) -> float:
        """Cohen's d of paired differences; NaN if all seeds have the same difference."""
        return self.difference / self.spread if self.spread else math.nan


def compare(treatment_SR: np.ndarray, control_SR: np.ndarray) -> Comparison:
    """Args: scores of S >= 2 seeds and R >= 1 test rows, higher is better; R = 1 tests over the seeds alone."""
    difference_SR = treatment_SR - control_SR
    seeds, rows = difference_SR.shape
    mean, of_seed_S = float(difference_SR.mean()), difference_SR.mean(1)
    variance, freedom = crossed_variance(difference_SR)
    reach = student_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(variance)
    p = 2 * (1 - student_cumulative(abs(mean) / math.sqrt(variance), freedom)) if variance else float(mean == 0)
    wins = float(np.heaviside(of_seed_S, 0.5).sum())
    return Comparison(
        mean, mean - reach, mean + reach, p, sign_flips(of_seed_S), wins, float(of_seed_S.std(ddof=1)), seeds, rows
    )


def crossed_variance(difference_SR: np.ndarray) -> tuple[float, float]:
    """The variance of the mean over all, and its degrees of freedom."""
    seeds, rows = difference_SR.shape
    of_seed_S, of_row_R = difference_SR.mean(1), difference_SR.mean(0)
    by_seed = of_seed_S.var(ddof=1) / seeds
    if rows == 1:
        return float(by_seed), seeds - 1.0
    by_row = of_row_R.var(ddof=1) / rows
    rest_SR = difference_SR - of_seed_S[:, None] - of_row_R + difference_SR.mean()
    freedom_of_rest = (seeds - 1) * (rows - 1)
    by_rest = (rest_SR**2).sum() / freedom_of_rest / (seeds * rows)
    parts = ((by_seed, seeds - 1), (by_row, rows - 1), (by_rest, freedom_of_rest))
    variance = by_seed + by_row - by_rest
    if variance <= max(by_seed, by_row):  # on average each underestimates the truth: take no less than the larger one
        variance, parts = max((by_seed, parts[:1]), (by_row, parts[1:2]))
    if not variance:
        return 0.0, seeds - 1.0
    return float(variance), float(variance**2 / sum(part**2 / freedom for part, freedom in parts))


def sign_flips(of_seed_S: np.ndarray) -> float:
    """The share of exchanges of the two treatments' names within seeds that give as large a mean.

    Exact if the seeds are few (Fisher's randomisation test); the observed names are among those counted.
    """
    seeds = len(of_seed_S)
    if 2**seeds <= FLIPS:
        signs = 1 - 2 * (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(FLIPS, seeds))
        signs[0] = 1
    sums = np.abs(signs @ of_seed_S)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Each comparison's p, corrected so that at most one family in twenty calls a chance result a difference: the least
    is multiplied by their number, the next by one less, and none falls below the one before (Holm, Scandinavian Journal
    of Statistics 6, 1979)."""
    corrected, reached = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        reached = max(reached, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = reached
    return corrected


def student_cumulative(t: float, freedom: float) -> float:
    """P(T <= t) of Student's distribution, for any freedom of 1 or more. (scipy has it, but if scipy is installed,
    transformers imports it: 0.4 s in every process that the tests start.)

    With t = sqrt(freedom) tan(angle), the density is proportional to cos(angle) ** (freedom - 1): smooth, on a finite
    range.
    """
    angle_G, mass_G = _student_mass(freedom)
    return float(np.interp(math.atan(t / math.sqrt(freedom)), angle_G, mass_G))


def student_quantile(p: float, freedom: float) -> float:
    """The t with P(T <= t) = p."""
    angle_G, mass_G = _student_mass(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(p, mass_G, angle_G)))


def _student_mass(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles and the probability of smaller ones, by the trapezium rule with steps as narrow as the density needs."""
    reach = min(math.pi / 2, 12 / math.sqrt(freedom))  # beyond it lies less than 1e-30
    angle_G = np.linspace(-reach, reach, 20_001)
    density_G = np.clip(np.cos(angle_G), 0, None) ** (freedom - 1)
    mass_G = np.concatenate([[0.0], np.cumsum(density_G[1:] + density_G[:-1])])
    return angle_G, mass_G / mass_G[-1]
