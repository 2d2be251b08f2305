"""Four functions to write yourself, compared with the real ones on random rows.

    python -m extras.exercises --blank > my.py      the functions, empty
    python -m extras.exercises my.py                which of them are right, and the first mistake
    python -m extras.exercises --check runs/default what exercises 7 to 9 give on this run

docs/exercises.md has the exercises.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
import random
import runpy
from textwrap import indent

from tqdm import tqdm

from extras.runs import Run, folder_of_run, plain_parser
from extras.score import make, score, tune_once
from extras.tables import markdown
from latent_tokens import (SEPARATORS, AugmentedRow, Group, LatentTokens, Placement, UserError,
                           make_batch)
from tasks import TOKEN_ID
from train import command

BLANK = Path(__file__).parents[2] / "docs" / "blank.py"


def random_row(rng: random.Random, notation: str) -> tuple[AugmentedRow, list[int]]:
    """A row of the tokens 0 ... 9, where 3 is the comma, and the slots read for its response."""
    placement = Placement.parse(notation, separators={"Comma": (3,)})
    query = [rng.randrange(10) for _ in range(rng.randint(1, 5))]
    response = [rng.randrange(10) for _ in range(rng.randint(1, 6))]
    row = AugmentedRow(placement, query)
    for token_id in response:
        row.append(token_id)
    return row, make_batch(placement, [query], [response]).read_slots[0].tolist()


def slot_names(row: AugmentedRow) -> list[str]:
    """What stands in each slot: a digit is a verbal token, <j> is latent j."""
    M = row.placement.total
    return [f"<{source}>" if source < M else str(row.token_ids[source - M])
            for source in row.sources]


@dataclass(frozen=True)
class Case:
    """One question to a student's function, and how to draw what it gets wrong."""

    call: str
    ask: Callable[[Callable], list]  # calls the function
    right: list
    headings: dict[str, list]  # rows above the answers, a column for each of ``right``
    picture: str = ""  # the augmented row, where the columns are not its slots

    def mistake(self, function: Callable) -> str:
        """Call, row, both answers, and ^ under the first difference; "" if there is none."""
        try:
            answer = self.ask(function)
        except (Exception, SystemExit) as error:  # what a student's function raises is its answer
            answer = error
        if not isinstance(answer, list):
            rows = table(self.headings | {"right": self.right}) + f"\nyours     {answer!r}"
        elif answer == self.right:
            return ""
        else:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(answer, self.right))
            rows = table(self.headings | {"yours": answer, "right": self.right,
                                          "": [""] * len(list(same)) + ["^"]})
        return "\n\n".join(filter(None, [self.call, self.picture, rows]))


def table(rows: dict[str, list]) -> str:
    """Named rows of cells, one below the other."""
    width = 2 + max(len(str(cell)) for row in rows.values() for cell in row)
    return "\n".join((name.ljust(9) + "".join(str(cell).center(width) for cell in row)).rstrip()
                     for name, row in rows.items())


def cases(rng: random.Random) -> dict[str, Case]:
    """A question to each function, on random rows."""
    notation = rng.choice(["Start_1+Comma_1", "Comma_2", "3_1", "End_2+Comma_1", "Start_2"])
    row, reads = random_row(rng, notation)
    is_latent = [source < row.placement.total for source in row.sources]
    query_slots = reads[0] + 1  # the first response token is read off the last of them
    slots = {"slot": list(range(len(is_latent))), "input": slot_names(row)}
    divided = {name: [*cells[:query_slots], "|", *cells[query_slots:]]
               for name, cells in slots.items()}
    commas, _ = random_row(rng, f"Comma_{rng.randint(1, 3)}")
    token_ids, m = commas.token_ids, commas.placement.total
    k, last = rng.randint(1, 4), rng.randint(0, 9)
    every_k, ts = Group((str(k),), 1), list(range(last + 1))
    return {
        "stands_before": Case(
            f"stands_before({k}, t)", lambda f: [f(k, t) for t in ts],
            [every_k.stands_before([0] * t, None, 99) for t in ts], {"t": ts}),
        "position_ids": Case(
            f"position_ids({is_latent})", lambda f: f(is_latent[:]), row.position_ids, slots),
        "sources": Case(
            f"sources({token_ids}, comma=3, m={m})", lambda f: f(token_ids[:], 3, m),
            commas.sources, {"input": slot_names(commas)}),
        "read_slots": Case(
            f"read_slots({is_latent}, query_slots={query_slots})",
            lambda f: f(is_latent[:], query_slots), reads,
            {"predicts": row.token_ids[row.query_length:]}, table(divided)),
    }


def first_mistake(name: str, function: Callable) -> str:
    """What a function gets wrong, drawn on the shortest such row; "" if it is right on all."""
    rng = random.Random(0)
    asked = sorted((cases(rng)[name] for _ in range(300)),
                   key=lambda case: len(case.call) + len(case.right))
    return next(filter(None, (case.mistake(function) for case in asked)), "")


CHECKED = (  # exercises 7 to 9
    "Comma_4 Start_4 End_4 Comma_4:40_4 Comma_4:80_4 Comma_4:random Comma_4:shuffled "
    "Comma_4:Comma_4-own Start_4:Start_4-own End_4:End_4-own").split()


def check(folders: list[Path]) -> None:
    """The accuracy of each line of the exercises, from the lowest base to the highest."""
    SEPARATORS["Equals"] = (TOKEN_ID["="],)  # exercise 9
    found, runs = {}, [Run.open(argparse.Namespace(
        folder=folder, task="generation", base=int(path.stem.removeprefix("generation-base"))))
        for folder in folders for path in sorted(folder.glob("generation-base*.pt"))]
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no base of Generation is there")
    for run in tqdm(runs, "checking", leave=False, disable=None):
        latents = {"base": LatentTokens(Placement(), run.base.config.n_embd)}
        seed = next((row["seed"] for row in run.rows if row["base"] == run.number
                     and row["task"] == run.task.name), 0)
        latents |= {name: make(run, name, seed) for name in CHECKED}
        latents["Equals_4, tuned"] = tune_once(run, Placement.parse("Equals_4"), seed)
        for name, each in latents.items():
            found.setdefault(name, []).append(score(run, each, seed))
    for name, means in found.items():
        splits = ({f"{mean[split]:.2f}" for mean in means} for split in means[0])
        found[name] = [f"`{name}`", *("-".join(sorted({min(c), max(c)})) for c in splits)]
    bases = ", ".join(str(run.number) for run in runs)
    print(markdown([f"bases {bases}", "ID", "OOD", "far OOD"], found.values()), end="")


def compare(args: argparse.Namespace) -> None:
    """Say of each function in a student's file if it is right, and draw its first mistake."""
    if args.check:
        return check(args.check)
    if args.blank or not args.file:
        return print(BLANK.read_text(encoding="utf-8"), end="")
    try:
        functions = runpy.run_path(args.file)
    except (Exception, SystemExit) as error:
        raise UserError(f"{args.file} cannot be run: {error!r}") from error
    for name in cases(random.Random(0)):
        mistake = first_mistake(name, functions[name]) if name in functions else "not there"
        print(f"{name}: {'wrong' if mistake else 'right on 300 rows'}")
        if mistake:
            print(f"\n{indent(mistake, '    ')}\n")


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("exercises", __doc__)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--blank", action="store_true", help="print the empty functions")
    parser.add_argument("--check", type=folder_of_run, nargs="+", metavar="DIR", help="runs")
    command(compare, parser, arguments)


if __name__ == "__main__":
    main()
