"""What experiments claim: paired differences between methods, a test, verdicts.

A claim is about what happens beyond the lengths that are tuned on, so two differences must be above
zero on the bases: that of the means over all OOD lengths, and that of the drops (ID minus OOD,
theirs minus ours). What is observed on a base is a mean over its tuning seeds.

    reproduced      p < 0.05, and both differences are above zero on at least nine bases of ten
    ordering only   the means of both are above zero
    not reproduced  else

p is that of a one-sided sign-flip test: the share of all ways to give the bases' differences signs
that yield a sum as large as theirs (beyond 20 bases, of 100,000 ways that are drawn). Of the two
differences the larger p counts, and all claims of a table are corrected for their number (Holm
1979). With fewer than five bases p < 0.05 is out of reach, and with twelve claims it takes eight.

The range beside a mean goes from the second lowest base to the second highest: of ten bases, a
97.9 % interval of the median, whatever their shape.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import comb
from statistics import fmean

import numpy as np

from extras.experiments import Experiment
from latent_tokens import LATEST

EXACT, DRAWS = 20, 100_000  # bases up to which all signs are tried; beyond, so many are drawn


def sign_flip(values: list[float]) -> float:
    """The one-sided p of the sum of values, each as likely to be negative."""
    total, sums = sum(values) - 1e-9, np.zeros(1)  # 1e-9: against rounding
    if len(values) > EXACT:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWS, len(values)))
        return float(1 + (signs @ np.abs(values) >= total).sum()) / (1 + DRAWS)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float((sums >= total).mean())


def holm(p_values: list[float]) -> list[float]:
    """Corrected for their number: p < 0.05 has at most one chance in twenty to be wrong at all."""
    corrected, largest = list(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def inner_range(values: list[float]) -> tuple[float, float]:
    """The narrowest pair of ranks that holds the median with 95 %; the whole range below six."""
    cut, n = 0, len(values)
    while 1 - 2 * sum(comb(n, k) for k in range(cut + 2)) / 2 ** n >= 0.95:
        cut += 1
    return sorted(values)[cut], sorted(values)[n - 1 - cut]


@dataclass(frozen=True)
class Difference:
    """A proposed method against a baseline on the same bases, by one metric."""

    experiment: Experiment
    metric: str
    methods: tuple[str, str]  # ours and theirs
    is_claim: bool = True

    def values(self, split: str) -> list[tuple[float, float]]:
        """Ours and theirs on each base."""
        ours, theirs = (self.experiment.by_base(method, self.metric,
                                                self.experiment.splits.get(split, ()))
                        for method in self.methods)
        return [(ours[base], theirs[base]) for base in ours if base in theirs]

    def means(self, index: int) -> str:
        """Of ours (0) or theirs (1) on each split: ``1.00, 0.31, 0.16``"""
        return ", ".join(f"{fmean(both[index] for both in self.values(split)):.2f}"
                         for split in self.experiment.splits)

    @property
    def out_of_distribution(self) -> list[float]:
        return [ours - theirs for ours, theirs in self.values("OOD")]

    @property
    def drops(self) -> list[float]:
        """By how much more the baseline loses from ID to OOD."""
        tuned = [ours - theirs for ours, theirs in self.values("ID")]
        return [longer - short for longer, short in zip(self.out_of_distribution, tuned)]

    @property
    def above_zero(self) -> int:
        """The bases on which both are."""
        return sum(min(both) > 0 for both in zip(self.out_of_distribution, self.drops))

    @property
    def p(self) -> float:
        return max(sign_flip(self.out_of_distribution), sign_flip(self.drops))

    def verdict(self, p: float) -> str:
        if p < 0.05 and self.above_zero >= 0.9 * len(self.drops):
            return "reproduced"
        both = fmean(self.out_of_distribution), fmean(self.drops)
        return "ordering only" if min(both) > 0 else "not reproduced"


def differences(found: Iterable[Experiment]) -> list[Difference]:
    """All that were observed, ID and OOD."""
    compared = []
    for each in found:
        claim = each.about.claim
        beside = tuple(method + LATEST for method in claim.proposed)  # compared, and no claims
        for metric, *methods in product(claim.metrics, claim.proposed + beside, claim.baselines):
            one = Difference(each, metric, tuple(methods), methods[0] in claim.proposed)
            if one.values("ID") and one.values("OOD"):
                compared.append(one)
    return compared


def verdicts(compared: list[Difference]) -> dict[Difference, tuple[float, str]]:
    """The corrected p and the verdict of each claim."""
    claims = [each for each in compared if each.is_claim]
    return {each: (p, each.verdict(p))
            for each, p in zip(claims, holm([each.p for each in claims]))}
