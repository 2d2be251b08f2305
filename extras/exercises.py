"""Four functions to write yourself, compared with the real ones on random rows.

    python -m extras.exercises --blank > my.py      the functions, empty
    python -m extras.exercises my.py                which of them are right, and the first mistake

docs/exercises.md has the exercises.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
import importlib.util
from itertools import zip_longest
from pathlib import Path
import random
from textwrap import indent
import traceback

from latent_tokens import AugmentedRow, Group, Placement, UserError, make_batch
from train import one_line_exits

BLANK = '''"""Write the bodies; python -m extras.exercises my.py compares them with ours."""


def stands_before(k: int, t: int) -> bool:
    """The placement k_m: do its latents stand before verbal token t = 0, 1, ...?

    They stand after every k verbal tokens, and nothing stands before the first one.

    >>> [stands_before(3, t) for t in range(7)]
    [False, False, False, True, False, False, True]
    """


def position_ids(is_latent: list[bool]) -> list[int]:
    """The position id of each slot of an augmented row; one slot is latent or verbal.

    A latent takes the id of the verbal token after it. The last slot is a verbal token.

    >>> position_ids([True, False, True, False, False])
    [0, 0, 1, 1, 2]
    """


def sources(token_ids: list[int], comma: int, m: int) -> list[int]:
    """The slots of a query with Comma_m: j < m for latent j, m + t for verbal token t.

    >>> sources([7, 3, 9], comma=3, m=2)  # before the 3 stand latents 0 and 1
    [2, 0, 1, 3, 4]
    """


def read_slots(is_latent: list[bool], query_slots: int) -> list[int]:
    """The slot whose output predicts each verbal token of the response, in order.

    The first ``query_slots`` slots are the query's, latents at its end included; the others hold
    the response. What is read must not have seen latents that wait for the token it predicts.

    >>> read_slots([False, False, False, True, False], query_slots=2)
    [1, 2]
    """
'''


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
    headings: dict[str, list[str]]  # rows above the answers, a column for each of ``right``
    picture: str = ""  # the augmented row, where the columns are not its slots

    def answer(self, function: Callable) -> list | str:
        """What the function returns, or why that is no list."""
        try:
            answer = self.ask(function)
        except Exception as error:  # whatever a student's function raises is its answer
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return (f"{type(error).__name__}: {error} "
                    f"(line {frame.lineno} of {Path(frame.filename).name})")
        return answer if isinstance(answer, list) else f"{answer!r}, which is not a list"

    def drawn(self, answer: list | str) -> str:
        """Call, row, both answers, and ^ under the first difference."""
        right = list(map(str, self.right))
        if isinstance(answer, str):
            rows = table(self.headings | {"right": right}) + f"\nyours     {answer}"
        else:
            pairs = enumerate(zip_longest(answer, self.right, fillvalue=""))
            first = next(i for i, (one, other) in pairs if one != other)
            rows = table(self.headings | {"yours": list(map(str, answer)), "right": right,
                                          "": [""] * first + ["^"]})
        return "\n\n".join(filter(None, [self.call, self.picture, rows]))


def table(rows: dict[str, list[str]]) -> str:
    """Named rows of cells, one below the other."""
    width = 2 + max(len(cell) for row in rows.values() for cell in row)
    return "\n".join((name.ljust(9) + "".join(cell.center(width) for cell in row)).rstrip()
                     for name, row in rows.items())


def cases(rng: random.Random) -> dict[str, Case]:
    """A question to each function, on random rows."""
    notation = rng.choice(["Start_1+Comma_1", "Comma_2", "3_1", "End_2+Comma_1", "Start_2"])
    row, reads = random_row(rng, notation)
    is_latent = [source < row.placement.total for source in row.sources]
    query_slots = reads[0] + 1  # the first response token is read off the last of them
    slots = {"slot": list(map(str, range(len(is_latent)))), "input": slot_names(row)}
    divided = {name: [*cells[:query_slots], "|", *cells[query_slots:]]
               for name, cells in slots.items()}
    response = list(map(str, row.token_ids[row.query_length:]))

    commas, _ = random_row(rng, f"Comma_{rng.randint(1, 3)}")
    token_ids, m = commas.token_ids, commas.placement.total
    k, last = rng.randint(1, 4), rng.randint(0, 9)
    every_k = Group((str(k),), 1)
    return {
        "stands_before": Case(
            f"stands_before({k}, t)", lambda f: [f(k, t) for t in range(last + 1)],
            [every_k.stands_before(t, None, 99) for t in range(last + 1)],
            {"t": list(map(str, range(last + 1)))}),
        "position_ids": Case(
            f"position_ids({is_latent})", lambda f: f(is_latent[:]), row.position_ids, slots),
        "sources": Case(
            f"sources({token_ids}, comma=3, m={m})", lambda f: f(token_ids[:], 3, m),
            commas.sources, {"input": slot_names(commas)}),
        "read_slots": Case(
            f"read_slots({is_latent}, query_slots={query_slots})",
            lambda f: f(is_latent[:], query_slots), reads, {"predicts": response},
            table(divided)),
    }


def first_mistake(name: str, function: Callable, rows: int = 300) -> str:
    """What a function gets wrong, drawn on the shortest such row; "" if it is right on all."""
    rng = random.Random(0)
    drawn = [cases(rng)[name] for _ in range(rows)]
    for case in sorted(drawn, key=lambda case: len(case.call) + len(case.right)):
        answer = case.answer(function)
        if answer != case.right:
            return case.drawn(answer)
    return ""


def load(path: Path):
    """A student's file as a module. Raises UserError if it cannot be run."""
    spec = importlib.util.spec_from_file_location("my", path)
    if spec is None or not path.is_file():
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file of a student's may raise anything
        raise UserError(f"{path} cannot be run: {error!r}") from error
    return module


def compare(module) -> None:
    """Say of each function in a student's module if it is right, and draw its first mistake."""
    for name in cases(random.Random(0)):
        function = getattr(module, name, None)
        mistake = first_mistake(name, function) if function else "not there"
        print(f"{name}: {'wrong' if mistake else 'right on 300 rows'}")
        if mistake:
            print(f"\n{indent(mistake, '    ')}\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.exercises", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--blank", action="store_true", help="print the empty functions")
    args = parser.parse_args(arguments)
    if args.blank or not args.file:
        print(BLANK, end="")
        return
    with one_line_exits(parser):
        compare(load(args.file))


if __name__ == "__main__":
    main()
