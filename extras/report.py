"""The tables of a run as Markdown, with intervals and verdicts, from ``results.json`` alone.

    python -m extras.report runs/default
    python -m extras.report docs/results/confirm/*.json      several files as one
    python -m extras.report runs/default --svg docs          pictures in their place (curves.py)

A cell is the mean over the lengths of its split, then over the tuning seeds of a base, then over
bases, with the sd between bases (between seeds, where there is one base). ``extras/claims.py`` says
how differences are judged.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
import sys

from extras import curves
from extras.claims import by_base, claim_of, differences, observations, read, span, splits_of


def mean_and_sd(values: list[float]) -> str:
    """``0.93 ± 0.02``"""
    if not values:
        return ""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


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


def main(arguments: list[str] | None = None) -> None:
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
