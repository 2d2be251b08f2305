"""Experiments as tables in Markdown."""

from collections.abc import Collection, Iterable
from statistics import fmean, stdev

from extras.claims import DRAWS, EXACT, Difference, differences, inner_range, verdicts
from extras.experiments import Experiment


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n{rows}\n"


def mean_and_sd(values: Collection[float]) -> str:
    """``0.93 ± 0.02``"""
    sd = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{sd}" if values else ""


def span(lengths: list[int]) -> str:
    """``6-24``, or ``6`` if that is all."""
    return "-".join(str(length) for length in sorted({lengths[0], lengths[-1]}))


def methods_table(each: Experiment) -> str:
    """Each method on each split, by each metric of the claim."""
    columns = [(metric, name) for metric in each.about.claim.metrics if metric in each.rows[0]
               for name in each.splits]
    lines = []
    for method in each.methods:
        mine = [row for row in each.rows if row["method"] == method]
        cells = [mean_and_sd(each.by_base(method, metric, each.splits[name]).values())
                 for metric, name in columns]
        lines.append([f"`{method}`", str(len(mine)), str(mine[0]["trained"]),
                      str(max(row["inserted"] for row in mine)), *cells])
    heads = [f"{metric} {name} {span(each.splits[name])}" for metric, name in columns]
    return markdown([each.task, "runs", "trained", f"inserted at {each.lengths[-1]}", *heads],
                    lines)


def fading_table(each: Experiment) -> str:
    """Do mistakes only add up? "" for a task whose answers give the score of one length each."""
    if len(each.about.test_lengths) != 1:
        return ""
    splits = {name: each.splits[name] for name in ("ID", "far OOD") if name in each.splits}
    lines = [[f"`{method}`", *(mean_and_sd(each.still_right(method, lengths).values())
                               for lengths in splits.values())] for method in each.methods]
    heads = [f"{name}, k = {span(lengths)}" for name, lengths in splits.items()]
    return ("In `exact` mistakes add up. Of the answers that are right up to k - 1, the share that "
            f"is right at k:\n\n{markdown([each.task, *heads], lines)}")


def sections(found: list[Experiment]) -> str:
    """The tables of each experiment, under its name and how it differs from one of that name."""
    parts = []
    for each in found:
        parts.append(f"### {each.task.capitalize()}{f', with {each.note}' * bool(each.note)}\n")
        parts += [methods_table(each), *filter(None, [fading_table(each)])]
    return "\n".join(parts)


def claim_name(one: Difference) -> str:
    """``Repetition, exact, n = 9-20 (tuned on 1-8)``"""
    each = one.experiment
    lengths = each.about.length_name.format(span(each.splits["OOD"]))
    return f"{each.task.capitalize()}, {one.metric}, {lengths} (tuned on {span(each.splits['ID'])})"


def claims_table(found: list[Experiment]) -> str:
    """A line for each difference; "" where there are none."""
    lines, before, compared = [], "", differences(found)
    judged = verdicts(compared)
    for one in compared:
        p, verdict = judged.get(one, (None, "beside"))
        ours, theirs = (f"`{method}` {one.means(index)}"
                        for index, method in enumerate(one.methods))
        lines.append(["" if claim_name(one) == before else claim_name(one), ours, theirs,
                      mean_and_range(one.out_of_distribution), mean_and_range(one.drops),
                      f"{one.above_zero}/{len(one.drops)}",
                      "" if p is None else f"{p:.3f}", verdict])
        before = claim_name(one)
    drawn = any(len(one.drops) > EXACT for one in compared)
    head = ["claim", "proposed: ID, OOD, far", "baseline: ID, OOD, far", "OOD difference",
            "difference of drops", "bases above zero", f"p ({DRAWS:,} draws)" if drawn else "p",
            "verdict"]
    return markdown(head, lines) if lines else ""


def summary_table(found: list[Experiment]) -> str:
    """A row for each task: OOD means by the first metric of its claim, and the verdicts."""
    judged, lines = verdicts(differences(found)), []
    for each in found:
        claim, lengths = each.about.claim, each.splits["OOD"]
        metric = claim.metrics[0]
        ours, theirs = (", ".join(
            f"`{method}` {mean_and_sd(each.by_base(method, metric, lengths).values())}"
            for method in methods) for methods in (claim.proposed, claim.baselines))
        against = {}
        for one, (_, verdict) in judged.items():
            if one.experiment is each and one.metric == metric:
                against.setdefault(verdict, {})[f"`{one.methods[1]}`"] = None
        said = "; ".join(verdict if len(names) == len(claim.baselines)
                         else f"{verdict} against {', '.join(names)}"
                         for verdict, names in against.items())
        lines.append([f"{each.task.capitalize()}, {metric}", span(each.splits["ID"]),
                      each.about.length_name.format(span(lengths)), ours, theirs, said])
    return markdown(["task", "tuned on", "tested on", "proposed", "baselines", "verdict"], lines)


def mean_and_range(values: list[float]) -> str:
    """``+0.31 (+0.20 ... +0.42)``: see claims.py."""
    low, high = inner_range(values)
    return f"{fmean(values):+.2f} ({low:+.2f} ... {high:+.2f})"
