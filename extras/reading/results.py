"""The tables of docs/results.md, from the rows in docs/results/.

    python -m extras.results

The text of the page is written by hand. What stands between ``<!--claims-->``, ``<!--confirm-->``
or ``<!--more-->`` and the next ``<!--end-->`` is made here, and a test compares.
"""

import argparse
from itertools import product
from pathlib import Path
import re

from extras.experiments import Experiment, experiments, read
from extras.runs import plain_parser
from extras.tables import claims_table, markdown, mean_and_sd, sections
from train import command

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def dial_table(dial: list[Experiment]) -> str:
    """Exact answers, ID and far OOD, against P of generation-P (Generation: 0)."""
    by_rate = {float(each.task.partition("-")[2] or 0): each for each in dial}
    lines = []
    for method, split in product(("instruction", "reminders", "Start_4", "Comma_4"),
                                 ("ID", "far OOD")):
        cells = [mean_and_sd(each.by_base(method, "exact", each.splits[split]).values())
                 for each in by_rate.values()]
        lines.append([f"`{method}` {split}", *cells])
    return markdown(["the dial, exact; P =", *(f"{rate:g}" for rate in by_rate)], lines)


def fill(page: str) -> str:
    """The page with its tables made anew. The dial has one, together with Generation."""
    raw = PAGE.parent / "results"
    confirm, more = (experiments(read([raw / name])) for name in ("confirm.jsonl", "more.jsonl"))
    dial = [each for each in more if each.task.startswith("generation-")]
    generation, = (each for each in confirm if each.task == "generation")
    made = {"claims": claims_table(confirm), "confirm": sections(confirm),
            "more": sections([each for each in more if each not in dial])
            + f"\n### The dial\n\n{dial_table([generation, *dial])}"}
    return re.sub(r"<!--(claims|confirm|more)-->.*?<!--end-->",
                  lambda block: f"<!--{block[1]}-->\n\n{made[block[1]]}\n<!--end-->", page,
                  flags=re.DOTALL)


def write(_: argparse.Namespace) -> None:
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    command(write, plain_parser("results", __doc__), None)
