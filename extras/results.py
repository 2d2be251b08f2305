"""docs/results.md from docs/results/: a section for each file of raw results.

    python -m extras.results

``confirm.jsonl`` holds rows as in a run's ``results.jsonl``. Its text, ``confirm.md``, and
``introduction.md`` are written by hand, all else on the page is made here, and a test compares.
"""

import argparse
from itertools import product
from pathlib import Path

from extras.experiments import Experiment, experiments, read
from extras.runs import plain_parser
from extras.tables import claims_table, markdown, mean_and_sd, methods_table
from train import command

DOCS = Path(__file__).parent.parent / "docs"


def dial_table(dial: list[Experiment]) -> str:
    """Accuracy ID and far OOD against P of generation-P (Generation: 0)."""
    by_rate = {float(each.task.partition("-")[2] or 0): each for each in dial}
    lines = []
    for method, split in product(("instruction", "reminders", "Start_4", "Comma_4"),
                                 ("ID", "far OOD")):
        cells = [mean_and_sd(each.by_base(method, "accuracy", each.splits[split]).values())
                 for each in by_rate.values()]
        lines.append([f"`{method}` {split}", *cells])
    return markdown(["the dial, accuracy; P =", *(f"{rate:g}" for rate in by_rate)], lines)


def section(path: Path, generation: Experiment) -> str:
    """The text of a file and its tables. The dial has one, together with Generation."""
    found = experiments(read([path]))
    dial = [each for each in found if each.task.startswith("generation-")]
    parts = [path.with_suffix(".md").read_text(encoding="utf-8")]
    for each in found:
        if each not in dial:
            title = each.task.capitalize() + (f", with {each.note}" if each.note else "")
            parts += [f"### {title}\n", methods_table(each)]
    if dial:
        parts += ["### The dial\n", dial_table([generation, *dial])]
    return "\n".join(parts)


def page(folder: Path) -> str:
    """The whole page: the claims in one table, and the files in the order of their names."""
    introduction = (folder / "introduction.md").read_text(encoding="utf-8")
    confirmed = experiments(read([folder / "confirm.jsonl"]))
    generation = next(each for each in confirmed if each.task == "generation")
    return "\n".join([introduction, claims_table(confirmed),
                      *(section(path, generation) for path in sorted(folder.glob("*.jsonl")))])


def write(_: argparse.Namespace) -> None:
    (DOCS / "results.md").write_text(page(DOCS / "results"), encoding="utf-8")
    print(f"wrote {DOCS / 'results.md'}")


if __name__ == "__main__":
    command(write, plain_parser("results", __doc__), None)
