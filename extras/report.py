"""The tables of a run as Markdown, with intervals and verdicts, from its results alone.

    python -m extras.report runs/default
    python -m extras.report docs/results/confirm.jsonl       or any number of files and folders
    python -m extras.report runs/default --svg docs          pictures in their place (pictures.py)

A cell is the mean over the lengths of its split, then over the tuning seeds of a base, then over
bases, with the sd between bases (between seeds, where there is one base). ``extras/experiments.py``
says which rows are averaged, ``extras/claims.py`` how differences are judged.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from extras import pictures
from extras.claims import differences
from extras.experiments import Experiment, experiments, read
from extras.tables import BLOCKS, claims_table, curves, dots, encodes, methods_table
from latent_tokens import UserError


def sections(found: list[Experiment], ascii_only: bool) -> Iterator[str]:
    """All there is to say of each experiment: its table, its curves, its differences."""
    scale = " " * 27 + "".join(f"{mark:<10}" for mark in "-0.2 0 0.2 0.4 0.6 0.8 1".split())
    for each, compared in differences(found).items():
        if each.note:
            yield f"{each.task} again, with {each.note}:\n"
        yield methods_table(each)
        yield curves(each, ascii_only)
        if compared:
            yield claims_table({each: compared})
            yield "\n".join(["```", *map(dots, compared), scale.rstrip(), "```\n"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=[Path("runs/default")],
                        help="folders of runs, or files as their results.jsonl; default: "
                        "runs/default")
    parser.add_argument("--svg", type=Path, metavar="FOLDER",
                        help="write pictures into this folder, and no tables")
    args = parser.parse_args(arguments)
    try:
        found = experiments(read(args.results))
        if args.svg:
            print(*(f"wrote {path}" for path in pictures.write(found, args.svg)), sep="\n")
            return
    except UserError as error:
        parser.exit(2, f"extras.report: {error}\n")
    except OSError as error:
        parser.exit(2, f"extras.report: cannot write pictures: {error}\n")
    for section in sections(found, not encodes(BLOCKS)):
        print(section if encodes(section) else section.replace("±", "+/-"))


if __name__ == "__main__":
    main()
