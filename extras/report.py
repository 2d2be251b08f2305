"""The tables of a run as Markdown, with intervals and verdicts, from ``results.json`` alone.

    python -m extras.report runs/default
    python -m extras.report docs/results/confirm-*.json      several files as one
    python -m extras.report runs/default --svg docs          pictures in their place (curves.py)

A cell is the mean over the lengths of its split, then over the tuning seeds of a base, then over
bases, with the sd between bases (between seeds, where there is one base). A base is named by the
seed of its pre-training.

A difference is paired: both methods on the same base with the same seed. Its 95 % interval is
Student's t over bases (over seeds, where there is one base), cut off at -1 and 1, beyond which no
difference can lie. It takes the means of bases for normally distributed, and is not corrected for
the number of differences; so every pair is shown as a dot, too. The verdict on a difference:

    reproduced      the interval over bases lies above zero, and at least nine pairs of ten do
    ordering only   the mean lies above zero
    not reproduced  else
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
import json
from math import inf
from pathlib import Path
from statistics import fmean, stdev
import sys

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


def mean_and_sd(values: list[float]) -> str:
    """``0.93 ± 0.02``"""
    if not values:
        return ""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def span(lengths: list[int]) -> str:
    """``6-24``, or ``6`` if that is all."""
    return "-".join(str(length) for length in sorted({lengths[0], lengths[-1]}))


def table(task: str, rows: list[dict]) -> str:
    """All methods of a task."""
    splits = splits_of(task, rows)
    cells = [(metric, lengths) for metric in claim_of(task).metrics for lengths in splits.values()]
    heads = [f"{metric} {name} {span(lengths)}"
             for metric in claim_of(task).metrics for name, lengths in splits.items()]
    longest = max(row["length"] for row in rows)
    lines = [f"| {task} | runs | trained | inserted at {longest} | " + " | ".join(heads) + " |",
             "|---" * (4 + len(heads)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        runs = len({(row["base"], row["seed"]) for row in mine})
        means = [mean_and_sd(by_base(observations(rows, method, *cell))) for cell in cells]
        inserted = max(row["latents_inserted"] for row in mine)
        lines.append(f"| `{method}` | {runs} | {mine[0]['trainable_parameters']} | {inserted} | "
                     + " | ".join(means) + " |")
    return "\n".join(lines)


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


def claim_table(task: str, rows: list[dict]) -> str:
    """The differences of a task's claim, and a dot for each pair; "" where there are none."""
    claim, found = claim_of(task), differences(task, rows)
    if not found:
        return ""
    lengths = splits_of(task, rows)[claim.split]
    scale = " " * 27 + "".join(f"{mark:<10}" for mark in "-0.2 0 0.2 0.4 0.6 0.8 1".split())
    return "\n".join([f"| {claim.metrics[0]} {claim.split} {span(lengths)} | difference | "
                      "95 % interval | above zero | relative | verdict |",
                      "|---|---|---|---|---|---|", *(each.line() for each in found),
                      "", "```", *(each.dots() for each in found), scale.rstrip(), "```"])


def sections(rows: list[dict], ascii_only: bool = False) -> Iterator[str]:
    """All there is to say of each task: its table, its curves, its differences."""
    from extras import curves  # here, since it imports this module
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        parts = [table(task, mine), curves.terminal(task, mine, ascii_only),
                 claim_table(task, mine)]
        yield "\n\n".join(parts).rstrip() + "\n"


def encodes(text: str) -> bool:
    """Whether the terminal has all of its characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return True
    except UnicodeEncodeError:
        return False


def printable(text: str) -> str:
    """With +/- where the terminal has no sign for the sd."""
    return text if encodes(text) else text.replace("±", "+/-")


def read(path: Path) -> dict:
    """What a run kept. Raises ValueError and the like on anything but a file of results."""
    results = json.loads((path / "results.json" if path.is_dir() else path).read_text())
    if not results["rows"] or not all(isinstance(row["task"], str) for row in results["rows"]):
        raise ValueError("no rows")
    return results


def main(arguments: list[str] | None = None) -> None:
    from extras import curves  # here, since it imports this module
    parser = argparse.ArgumentParser(prog="extras.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=[Path("runs/default")],
                        help="folders of runs, or their results.json; default: runs/default")
    parser.add_argument("--svg", type=Path, metavar="FOLDER",
                        help="write pictures into this folder, and no tables")
    args, rows = parser.parse_args(arguments), []
    for path in args.results:
        try:
            rows += read(path)["rows"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            parser.exit(2, f"extras.report: {path} is not a readable file of results: {error!r}\n")
    if args.svg:
        try:
            print(*(f"wrote {path}" for path in curves.write_pictures(rows, args.svg)), sep="\n")
        except OSError as error:
            parser.exit(2, f"extras.report: cannot write pictures: {error}\n")
        return
    for section in sections(rows, not encodes(curves.BLOCKS)):
        print(printable(section))


if __name__ == "__main__":
    main()
