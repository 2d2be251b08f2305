"""The tables and pictures of docs/results.md, and smollm.svg, from the rows in docs/results/.

    python -m extras.results

What stands between ``<!--claims-->`` or ``<!--confirm-->`` and ``<!--end-->`` is made here.
"""

import argparse
from pathlib import Path
import re

from extras.experiments import Experiment, experiments, read
from extras.pictures import curves
from extras.runs import plain_parser
from extras.tables import claims_table, sections
from latent_tokens import LATEST
from train import command

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def confirmed(beside: bool) -> list[Experiment]:
    """The confirming run, with or without ``-latest``, of which nothing was claimed."""
    rows = read([PAGE.parent / "results" / "confirm.jsonl"])
    return experiments([row for row in rows if beside or LATEST not in row["method"]])


def drawn() -> dict[str, str]:
    """All pictures, by name."""
    mine = "Start_4", "Comma_4", "Comma_4-own-latest"
    real = [row for row in read([PAGE.parent / "results/smollm.jsonl"]) if row["method"] in mine]
    return {"smollm": curves(experiments(real)[0], "forced"),
            **{each.task: curves(each) for each in confirmed(False)}}


def fill(page: str) -> str:
    """The page with its tables made anew."""
    made = {"claims": claims_table(confirmed(False)), "confirm": sections(confirmed(True))}
    return re.sub(r"<!--(claims|confirm)-->.*?<!--end-->",
                  lambda block: f"<!--{block[1]}-->\n\n{made[block[1]]}\n<!--end-->", page,
                  flags=re.DOTALL)


def write(_: argparse.Namespace) -> None:
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, svg in drawn().items():
        (PAGE.parent / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"wrote {PAGE} and its pictures")


if __name__ == "__main__":
    command(write, plain_parser("results", __doc__), None)
