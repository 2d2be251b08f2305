"""The tables of docs/results.md, from the rows in docs/results/.

    python -m extras.results

The text is written by hand. What stands between ``<!--claims-->`` (or confirm, ...) and the next
``<!--end-->`` is made here, and a test compares.
"""

import argparse
from pathlib import Path
import re

from extras.experiments import experiments, read
from extras.runs import plain_parser
from extras.tables import claims_table, sections
from train import command

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def fill(page: str) -> str:
    """The page with its tables made anew."""
    raw = PAGE.parent / "results"
    first, second, third = (experiments(read([raw / f"{run}.jsonl"]))
                            for run in ("confirm", "second", "third"))
    made = {"claims": claims_table(first), "confirm": sections(first),
            "second": claims_table(second), "third": claims_table(third)}
    return re.sub(r"<!--(claims|confirm|second|third)-->.*?<!--end-->",
                  lambda block: f"<!--{block[1]}-->\n\n{made[block[1]]}\n<!--end-->", page,
                  flags=re.DOTALL)


def write(_: argparse.Namespace) -> None:
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    command(write, plain_parser("results", __doc__), None)
