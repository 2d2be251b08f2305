"""What experiments claim: paired differences, their intervals and verdicts.

What is observed on one base is the mean over its tuning seeds (each seed, where there is one base).
A difference is paired: both methods on the same base with the same seed. Its 95 % interval is
Student's t over bases (over seeds, where there is one base), cut off at -1 and 1, beyond which no
difference can lie. It takes the means of bases for normally distributed, and is not corrected for
the number of differences; so every pair is shown as a dot, too. The verdict on a difference:

    reproduced      the interval over bases lies above zero, and at least nine pairs of ten do
    ordering only   the mean lies above zero
    not reproduced  else
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from extras.experiments import Experiment, Pair

# Student's t for 95 % and 2, 3, ... 10 observations; the last one is wide enough for more.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Values = dict[str, dict[float, list[float]]]  # method -> length or so -> the value of each base


def by_base(values: dict[Pair, float]) -> list[float]:
    """The means over seeds, one for each base; with one base, the values of the seeds."""
    bases = defaultdict(list)
    for (base, _), value in values.items():
        bases[base].append(value)
    return [fmean(seeds) for seeds in bases.values()] if len(bases) > 1 else list(values.values())


def by_length(each: Experiment) -> Values:
    """The metric of the claim: for each method and length, the values of all bases."""
    return {method: {length: bases for length in each.lengths
                     if (bases := by_base(each.observed(method, each.claim.metric, [length])))}
            for method in each.methods}


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean, within -1 and 1."""
    half = T_QUANTILE[min(len(values), 10) - 2] * stdev(values) / len(values) ** 0.5
    return max(-1.0, fmean(values) - half), min(1.0, fmean(values) + half)


@dataclass(frozen=True)
class Difference:
    """A proposed method against a baseline, by the metric and on the split of the claim."""

    ours: str
    theirs: str
    observed: dict[Pair, tuple[float, float]]  # ours and theirs on the same base with the same seed

    @property
    def pairs(self) -> dict[Pair, float]:
        return {pair: ours - theirs for pair, (ours, theirs) in self.observed.items()}

    def side(self, index: int) -> list[float]:
        """What was observed of ours (0) or theirs (1)."""
        return by_base({pair: both[index] for pair, both in self.observed.items()})

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


def differences(found: list[Experiment]) -> dict[Experiment, list[Difference]]:
    """Those of all claims that were observed at least twice."""
    compared = {each: [] for each in found}
    for each in found:
        claim, lengths = each.claim, each.splits.get(each.claim.split, [])
        for ours, theirs in product(claim.proposed, claim.baselines):
            mine = each.observed(ours, claim.metric, lengths)
            other = each.observed(theirs, claim.metric, lengths)
            both = {pair: (mine[pair], other[pair]) for pair in mine if pair in other}
            if len(both) > 1:
                compared[each].append(Difference(ours, theirs, both))
    return compared
