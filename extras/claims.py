"""What a run claims, from ``results.json`` alone: observations, paired differences, verdicts.

A base is named by the seed of its pre-training. What is observed on one base is the mean over its
tuning seeds (each seed, where there is one base).

A difference is paired: both methods on the same base with the same seed. Its 95 % interval is
Student's t over bases (over seeds, where there is one base), cut off at -1 and 1, beyond which no
difference can lie. It takes the means of bases for normally distributed, and is not corrected for
the number of differences; so every pair is shown as a dot, too. The verdict on a difference:

    reproduced      the interval over bases lies above zero, and at least nine pairs of ten do
    ordering only   the mean lies above zero
    not reproduced  else
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
import json
from math import inf
from pathlib import Path
from statistics import fmean, stdev

# Student's t for 95 % and 2, 3, ... 10 observations; the last one is wide enough for more.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Claim:
    """What a task is judged by. Copied from tasks.py, so that a results.json is enough to read."""

    metrics: tuple[str, ...]  # the columns; the claim is about the first
    split: str
    first_far_length: float
    proposed: tuple[str, ...]
    baselines: tuple[str, ...]


CLAIMS = {
    "generation": Claim(("accuracy", "exact"), "far OOD", 16, ("Comma_4",), ("Start_4", "End_4")),
    "repetition": Claim(("exact", "accuracy"), "OOD", 15, ("Start_2+Comma_2",),
                        ("Start_4", "End_4", "Comma_4")),
    "summation": Claim(("exact",), "OOD", 20, ("Comma_2", "4_2", "8_2"), ("Start_2", "End_2")),
}

NO_CLAIM = Claim(("exact", "accuracy"), "OOD", inf, (), ())  # of a task that is new


def claim_of(task: str) -> Claim:
    """A variant such as ``generation-0.1`` is judged like the task itself."""
    return CLAIMS.get(task.partition("-")[0], NO_CLAIM)


def splits_of(task: str, rows: list[dict]) -> dict[str, list[int]]:
    """The tested lengths of each split, without the splits of which none was tested."""
    def lengths(split: str, first: float = 0) -> list[int]:
        return sorted({row["length"] for row in rows
                       if row["split"] == split and row["length"] >= first})

    splits = {"ID": lengths("id"), "OOD": lengths("ood"),
              "far OOD": lengths("ood", claim_of(task).first_far_length)}
    return {name: tested for name, tested in splits.items() if tested}


def observations(rows: list[dict], method: str, metric: str, lengths: list[int]) -> dict:
    """The mean over the lengths for each (base, seed)."""
    values = defaultdict(list)
    for row in rows:
        if row["method"] == method and row["length"] in lengths:
            values[row["base"], row["seed"]].append(row[metric])
    return {pair: fmean(values[pair]) for pair in values}


def by_base(values: dict) -> list[float]:
    """The means over seeds, one for each base; with one base, the values of the seeds."""
    bases = defaultdict(list)
    for (base, _), value in values.items():
        bases[base].append(value)
    return [fmean(seeds) for seeds in bases.values()] if len(bases) > 1 else list(values.values())


def span(lengths: list[int]) -> str:
    """``6-24``, or ``6`` if that is all."""
    return "-".join(str(length) for length in sorted({lengths[0], lengths[-1]}))


def interval(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean, within -1 and 1."""
    half = T_QUANTILE[min(len(values), 10) - 2] * stdev(values) / len(values) ** 0.5
    return max(-1.0, fmean(values) - half), min(1.0, fmean(values) + half)


@dataclass(frozen=True)
class Difference:
    """A proposed method against a baseline, by the metric of the claim."""

    ours: str
    theirs: str
    pairs: dict[tuple[int, int], float]  # the difference for each (base, seed)
    baseline: float  # mean of the baseline over the same pairs

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

    def line(self) -> str:
        """A line of the table."""
        mean, (low, high) = fmean(self.values), interval(self.values)
        relative = f"{mean / self.baseline:+.0%}" if self.baseline else "from zero"
        return (f"| `{self.ours}` - `{self.theirs}` | {mean:+.2f} | {low:+.2f} to {high:+.2f} | "
                f"{self.above_zero} of {len(self.pairs)} | {relative} | {self.verdict} |")

    def dots(self) -> str:
        """One character for each 0.02 from -0.2 to 1: how many pairs lie there."""
        places = Counter(min(60, max(0, round((value + 0.2) / 0.02)))
                         for value in self.pairs.values())
        marks = [" .:3456789"[min(9, places[place])] for place in range(61)]
        marks[10] = "|" if marks[10] == " " else marks[10]  # zero
        return f"{self.ours + ' - ' + self.theirs:27}{''.join(marks)}"


def differences(task: str, rows: list[dict]) -> list[Difference]:
    """Those of a task's claim that were observed at least twice."""
    claim, found = claim_of(task), []
    lengths = splits_of(task, rows).get(claim.split, [])
    for ours, theirs in product(claim.proposed, claim.baselines):
        mine, other = (observations(rows, method, claim.metrics[0], lengths)
                       for method in (ours, theirs))
        pairs = {pair: mine[pair] - other[pair] for pair in mine if pair in other}
        if len(by_base(pairs)) > 1:
            baseline = fmean(by_base({pair: other[pair] for pair in pairs}))
            found.append(Difference(ours, theirs, pairs, baseline))
    return found


def read(path: Path) -> dict:
    """What a run kept. Raises ValueError and the like on anything but a file of results."""
    results = json.loads((path / "results.json" if path.is_dir() else path).read_text())
    if not results["rows"] or not all(isinstance(row["task"], str) for row in results["rows"]):
        raise ValueError("no rows")
    return results
