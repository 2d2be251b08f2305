"""The tables of a run as Markdown, with tests and verdicts, from its results alone.

    python -m extras.report runs/default
    python -m extras.report docs/results/confirm.jsonl       any number of folders, or files of rows

A cell is the mean over lengths, then over the tuning seeds of a base, then over bases, with the sd
between bases. experiments.py says which rows are averaged, claims.py how differences are judged.
"""

import argparse
from pathlib import Path
import sys

from extras import pictures
from extras.experiments import experiments, read
from extras.runs import DEFAULT, folder_of_run, plain_parser
from extras.tables import claims_table, sections
from train import command


def report(args: argparse.Namespace) -> None:
    paths = args.results or [folder_of_run(str(DEFAULT))]
    found = experiments(read(paths))
    if args.svg:
        return pictures.write(found, args.svg, paths)
    sys.stdout.reconfigure(errors="replace")  # "±", on a terminal that has no such sign
    print("\n".join(filter(None, [sections(found), claims_table(found)])), end="")


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("report", __doc__)
    parser.add_argument("results", type=folder_of_run, nargs="*")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="write pictures there, no tables")
    command(report, parser, arguments)


if __name__ == "__main__":
    main()
