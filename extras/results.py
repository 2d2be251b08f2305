"""docs/results.md from docs/results/: a section for each file of raw results.

    python -m extras.results

``confirm.jsonl`` holds rows as in a run's ``results.jsonl``, and ``confirm.md`` its text, written
by hand (title, command, machine, minutes). All below that text is made here, and a test compares.
"""

from pathlib import Path
from statistics import fmean

from extras.claims import differences
from extras.experiments import Experiment, experiments, read
from extras.pictures import dial_values
from extras.tables import claims_table, markdown, mean_and_sd, methods_table, span

DOCS = Path(__file__).parent.parent / "docs"
INTRODUCTION = """# All results

Made by `python -m extras.results` from the raw rows in `docs/results/`; do not edit. Cells are
means ± sd over bases; `extras/report.py` says how they are made, and prints more of a file, with
curves: `python -m extras.report docs/results/confirm.jsonl`. *Inserted* counts the latents of a
training example. Decoding ends with the last token, so it never feeds a group before that one: of
`Comma_4` in Generation it feeds 96 of 100.
"""


def base_table(each: Experiment) -> str:
    """The claim's methods on each base, as means over seeds; "" where none of them was run."""
    claim, splits = each.claim, each.splits
    split = claim.split if claim.split in splits else next(iter(splits))
    lines = []
    for method in (*claim.baselines, *claim.proposed):
        observed = each.observed(method, claim.metric, splits[split])
        cells = [[value for (base, _), value in observed.items() if base == wanted]
                 for wanted in each.bases]
        if observed:
            lines.append([f"`{method}`", *(f"{fmean(cell):.2f}" if cell else "" for cell in cells)])
    head = f"{claim.metric} {split} {span(splits[split])}, by base"
    return markdown([head, *(str(number) for number, _ in each.bases)], lines) if lines else ""


def dial_table(found: list[Experiment]) -> str:
    """The numbers of ``dial.svg``; "" for a single setting."""
    values = dial_values(found)
    restated = sorted({probability for line in values.values() for probability in line})
    head = ["Generation, accuracy far OOD; rules restated with", *(f"{p:g}" for p in restated)]
    lines = ([f"`{method}`", *(mean_and_sd(line.get(p, [])) for p in restated)]
             for method, line in values.items())
    return markdown(head, lines) if len(restated) > 1 else ""


def section(path: Path) -> str:
    """The text of a file and its tables."""
    found = experiments(read([path]))
    parts = [path.with_suffix(".md").read_text(encoding="utf-8"), dial_table(found)]
    for each in found:
        title = each.task.capitalize() + (f", with {each.note}" if each.note else "")
        parts += [f"### {title}\n", methods_table(each), base_table(each)]
    return "\n".join(part for part in parts if part)


def page(folder: Path) -> str:
    """The whole page: the claims in one table, and the files in the order of their names."""
    claims = claims_table(differences(experiments(read([folder / "confirm.jsonl"]))))
    return "\n".join([INTRODUCTION, claims, *map(section, sorted(folder.glob("*.jsonl")))])


def main() -> None:
    path = DOCS / "results.md"
    path.write_text(page(DOCS / "results"), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
