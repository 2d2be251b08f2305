"""What experiments claim: paired differences, their intervals and verdicts.

What is observed on one base is the mean over its tuning seeds (each seed, where there is one base).
A difference is paired: both methods on the same base with the same seed. Its 95 % interval is
Student's t over bases (over seeds, where there is one base), cut off at -1 and 1, beyond which no
difference can lie. It takes the means of bases for normally distributed, and is not corrected for
the number of differences; so differences.svg (pictures.py) shows every pair. The verdict:

    reproduced      the interval over bases lies above zero, and at least nine pairs of ten do
    ordering only   the mean lies above zero
    not reproduced  else
"""

from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from extras.experiments import Experiment, Pair, by_base

# Student's t for 95 % and 2, 3, ... 10 observations; the last one is wide enough for more.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean, within -1 and 1."""
    half = T_QUANTILE[min(len(values), 10) - 2] * stdev(values) / len(values) ** 0.5
    return max(-1.0, fmean(values) - half), min(1.0, fmean(values) + half)


@dataclass(frozen=True)
class Difference:
    """A proposed method against a baseline, by the metric and on the split of the claim."""

    methods: tuple[str, str]  # ours and theirs
    observed: list[dict[Pair, float]]  # of either, on the same bases with the same seeds

    @property
    def pairs(self) -> dict[Pair, float]:
        ours, theirs = self.observed
        return {pair: ours[pair] - theirs[pair] for pair in ours}

    @property
    def values(self) -> list[float]:
        return by_base(self.pairs)

    @property
    def above_zero(self) -> int:
        return sum(value > 0 for value in self.pairs.values())

    @property
    def verdict(self) -> str:
        several_bases = len({base for base, _ in self.pairs}) > 1
        nearly_all = self.above_zero >= 0.9 * len(self.pairs)
        if several_bases and nearly_all and interval(self.values)[0] > 0:
            return "reproduced"
        return "ordering only" if fmean(self.values) > 0 else "not reproduced"


def differences(each: Experiment) -> list[Difference]:
    """Those of its claim that were observed at least twice."""
    claim, lengths, compared = each.claim, each.splits.get(each.claim.split, []), []
    for methods in product(claim.proposed, claim.baselines):
        ours, theirs = (each.observed(method, lengths) for method in methods)
        both = [pair for pair in ours if pair in theirs]
        if len(both) > 1:
            observed = [{pair: values[pair] for pair in both} for values in (ours, theirs)]
            compared.append(Difference(methods, observed))
    return compared
