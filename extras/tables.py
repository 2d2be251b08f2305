"""Experiments as tables in Markdown."""

from collections.abc import Iterable
from statistics import fmean, stdev
import sys

from extras.claims import differences, interval
from extras.experiments import Experiment, by_base


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
        means = [mean_and_sd(each.means(method, lengths)) for lengths in splits.values()]
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


def claims_table(found: list[Experiment]) -> str:
    """A line for each difference; "" where there are none."""
    lines = []
    for each in found:
        for number, one in enumerate(differences(each)):
            low, high = interval(one.values)
            sides = (f"`{method}` {mean_and_sd(by_base(values))}"
                     for method, values in zip(one.methods, one.observed))
            lines.append(["" if number else claim_name(each), *sides,
                          f"{fmean(one.values):+.2f}", f"{low:+.2f} to {high:+.2f}",
                          f"{one.above_zero} of {len(one.pairs)}", one.verdict])
    head = ["claim", "ours", "baseline", "difference", "95 % interval", "above zero", "verdict"]
    return markdown(head, lines) if lines else ""


def encodes(text: str) -> bool:
    """Whether the terminal has all of its characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return True
    except UnicodeEncodeError:
        return False
