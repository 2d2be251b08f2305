"""docs/results.md from docs/results/: a section for each file of raw results.

    python -m extras.results

``confirm.jsonl`` holds rows as in a run's ``results.jsonl``. Its text, ``confirm.md``, and
``introduction.md`` are written by hand, all else on the page is made here, and a test compares.
"""

from pathlib import Path
from statistics import fmean

from extras.experiments import Experiment, experiments, read
from extras.tables import claims_table, markdown, mean_and_sd, methods_table, span

DOCS = Path(__file__).parent.parent / "docs"


def base_table(each: Experiment) -> str:
    """The claim's methods on each base, as means over seeds; "" where none of them was run."""
    claim, lines = each.claim, []
    lengths = each.splits.get(claim.split, [])
    for method in (*claim.baselines, *claim.proposed):
        observed = each.observed(method, lengths)
        cells = [[value for (base, _), value in observed.items() if base == wanted]
                 for wanted in each.bases]
        if observed:
            lines.append([f"`{method}`", *(f"{fmean(cell):.2f}" if cell else "" for cell in cells)])
    if not lines:
        return ""
    head = f"{claim.metric} {claim.split} {span(lengths)}, by base"
    return markdown([head, *(str(number) for number, _ in each.bases)], lines)


def dial_table(found: list[Experiment]) -> str:
    """Far OOD accuracy against P of generation-P (Generation itself: 0.5); "" for a single P."""
    dial = {float(each.task.partition("-")[2] or 0.5): each for each in found
            if each.task.partition("-")[0] == "generation"}
    dial, lines = dict(sorted(dial.items())), []
    for method in ("reminders", "Comma_4", "instruction", "Start_4"):
        cells = [mean_and_sd(each.means(method, each.splits["far OOD"])) for each in dial.values()]
        lines.append([f"`{method}`", *cells])
    head = ["Generation, accuracy far OOD; rules restated with", *(f"{p:g}" for p in dial)]
    return markdown(head, lines) if len(dial) > 1 else ""


def section(path: Path) -> str:
    """The text of a file and its tables."""
    found = experiments(read([path]))
    parts = [path.with_suffix(".md").read_text(encoding="utf-8"), dial_table(found)]
    for each in found:
        title = each.task.capitalize() + (f", with {each.note}" if each.note else "")
        parts += [f"### {title}\n", methods_table(each), base_table(each)]
    return "\n".join(filter(None, parts))


def page(folder: Path) -> str:
    """The whole page: the claims in one table, and the files in the order of their names."""
    introduction = (folder / "introduction.md").read_text(encoding="utf-8")
    claims = claims_table(experiments(read([folder / "confirm.jsonl"])))
    return "\n".join([introduction, claims, *map(section, sorted(folder.glob("*.jsonl")))])


if __name__ == "__main__":
    (DOCS / "results.md").write_text(page(DOCS / "results"), encoding="utf-8")
