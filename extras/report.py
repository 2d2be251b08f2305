"""The tables of a run as Markdown, with intervals, from its ``results.json`` alone.

    python -m extras.report runs/default

A cell is the mean over the lengths of its split, then over the tuning seeds of a base, then over
bases, with the sd between bases (between seeds, where there is one base). A difference is paired:
both methods on the same base with the same seed. Its 95 % interval is Student's t over bases (over
seeds, where there is one base); it is not corrected for the number of differences. Rows of several
bases carry the seed of pre-training as ``base``.
"""

import argparse
from collections import defaultdict
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
    "repetition": Claim(("exact", "accuracy"), "OOD", 11, ("Start_1+Comma_1",),
                        ("Start_2", "End_2", "Comma_2")),
    "summation": Claim(("exact",), "OOD", 20, ("Comma_2", "4_2", "8_2"), ("Start_2", "End_2")),
}

NO_CLAIM = Claim(("exact", "accuracy"), "OOD", inf, (), ())  # of a task that is new


def claim_of(task: str) -> Claim:
    return CLAIMS.get(task, NO_CLAIM)


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
            values[row.get("base", 0), row["seed"]].append(row[metric])
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
        runs = len({(row.get("base", 0), row["seed"]) for row in mine})
        means = [mean_and_sd(by_base(observations(rows, method, *cell))) for cell in cells]
        inserted = max(row["latents_inserted"] for row in mine)
        lines.append(f"| `{method}` | {runs} | {mine[0]['trainable_parameters']} | {inserted} | "
                     + " | ".join(means) + " |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """``+0.53 to +0.61``"""
    half = T_QUANTILE[min(len(values), 10) - 2] * stdev(values) / len(values) ** 0.5
    return f"{fmean(values) - half:+.2f} to {fmean(values) + half:+.2f}"


def differences(task: str, rows: list[dict]) -> str:
    """The claim of a task; "" where there are no two observations of any difference."""
    claim = claim_of(task)
    lengths = splits_of(task, rows).get(claim.split, [])
    lines = []
    for ours, theirs in product(claim.proposed, claim.baselines):
        mine, other = (observations(rows, method, claim.metrics[0], lengths)
                       for method in (ours, theirs))
        pairs = {pair: mine[pair] - other[pair] for pair in mine if pair in other}
        values = by_base(pairs)
        if len(values) > 1:
            baseline = fmean(by_base({pair: other[pair] for pair in pairs}))
            relative = f"{fmean(values) / baseline:+.0%}" if baseline else "from zero"
            lines.append(f"| `{ours}` - `{theirs}` | {fmean(values):+.2f} | {interval(values)} | "
                         f"{sum(value > 0 for value in pairs.values())} of {len(pairs)} | "
                         f"{relative} |")
    if not lines:
        return ""
    return "\n".join([f"| {claim.metrics[0]} {claim.split} {span(lengths)} | difference | "
                      "95 % interval | above zero | relative |", "|---|---|---|---|---|", *lines])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/default"),
                        help="a run's folder or its results.json; default: runs/default")
    path = parser.parse_args(arguments).results
    path = path / "results.json" if path.is_dir() else path
    try:
        rows = json.loads(path.read_text())["rows"]
        rows[0]["task"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.exit(2, f"extras.report: {path} is not a readable file of results: {error!r}\n")
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        print(f"{table(task, mine)}\n\n{differences(task, mine)}".rstrip() + "\n")


if __name__ == "__main__":
    main()
