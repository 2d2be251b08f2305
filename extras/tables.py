"""Experiments as text: tables in Markdown, and small curves for a terminal."""

from collections import Counter
from collections.abc import Iterable
from math import inf
from statistics import fmean, stdev
import sys

from extras.claims import Difference, by_base, by_length, interval
from extras.experiments import Experiment

BLOCKS, DIGITS = "▁▂▃▄▅▆▇█", "0123456789"


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n{rows}\n"


def mean_and_sd(values: list[float]) -> str:
    """``0.93 ± 0.02``"""
    if not values:
        return ""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def span(lengths: list[int]) -> str:
    """``6-24``, or ``6`` if that is all."""
    return "-".join(str(length) for length in sorted({lengths[0], lengths[-1]}))


def methods_table(each: Experiment) -> str:
    """Each method on each split."""
    metric, splits, lines = each.claim.metric, each.splits, []
    for method in each.methods:
        mine = [row for row in each.rows if row["method"] == method]
        means = [mean_and_sd(by_base(each.observed(method, metric, lengths)))
                 for lengths in splits.values()]
        lines.append([f"`{method}`", str(len(mine)), str(mine[0]["trained"]),
                      str(max(row["inserted"] for row in mine)), *means])
    heads = [f"{metric} {name} {span(lengths)}" for name, lengths in splits.items()]
    return markdown([each.task, "runs", "trained", f"inserted at {each.lengths[-1]}", *heads],
                    lines)


def claim_name(each: Experiment) -> str:
    """``Repetition, exact, n = 9-20 (tuned on 1-8)``"""
    lengths = each.about.length_name.format(span(each.splits[each.claim.split]))
    tuned = f" (tuned on {span(each.splits['ID'])})" if "ID" in each.splits else ""
    return f"{each.task.capitalize()}, {each.claim.metric}, {lengths}{tuned}"


def claims_table(compared: dict[Experiment, list[Difference]]) -> str:
    """A line for each difference; "" where there are none."""
    lines = []
    for each, found in compared.items():
        name = claim_name(each) if found else ""
        for one in found:
            low, high = interval(one.values)
            lines.append([name, f"`{one.ours}` {mean_and_sd(one.side(0))}",
                          f"`{one.theirs}` {mean_and_sd(one.side(1))}",
                          f"{fmean(one.values):+.2f}", f"{low:+.2f} to {high:+.2f}",
                          f"{one.above_zero} of {len(one.pairs)}", one.verdict])
            name = ""
    head = ["claim", "ours", "baseline", "difference", "95 % interval", "above zero", "verdict"]
    return markdown(head, lines) if lines else ""


# -------------------------------------------------------------------------------------- terminal

def encodes(text: str) -> bool:
    """Whether the terminal has all of its characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return True
    except UnicodeEncodeError:
        return False


def curves(each: Experiment, ascii_only: bool) -> str:
    """A character for each length, from 0 at the foot to 1; ``|`` is where OOD begins."""
    marks = DIGITS if ascii_only else BLOCKS
    values, splits = by_length(each), each.splits

    def mark(bases: list[float]) -> str:
        return marks[min(len(marks) - 1, int(fmean(bases) * len(marks)))] if bases else " "

    ends = " | ".join(span(splits[name]) for name in ("ID", "OOD") if name in splits)
    unit = "tenths" if ascii_only else "eighths"
    shown = [f"{each.claim.metric} at length {ends}, in {unit}"]
    for method, line in values.items():
        curve = ("|" * (length == splits.get("OOD", [inf])[0]) + mark(line.get(length, []))
                 for length in each.lengths)
        shown.append(f"{method:{max(map(len, values)) + 2}}{''.join(curve)}")
    return "\n".join(["```", *(line.rstrip() for line in shown), "```\n"])


def dots(each: Difference) -> str:
    """One character for each 0.02 from -0.2 to 1: how many pairs lie there."""
    places = Counter(min(60, max(0, round((value + 0.2) / 0.02))) for value in each.pairs.values())
    marks = [" .:3456789"[min(9, places[place])] for place in range(61)]
    marks[10] = "|" if marks[10] == " " else marks[10]  # zero
    return f"{each.ours + ' - ' + each.theirs:27}{''.join(marks)}".rstrip()
