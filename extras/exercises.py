"""Four functions to write yourself, compared with the real ones on random rows.

    python -m extras.exercises --blank > my.py      the functions, empty
    python -m extras.exercises my.py                which of them are right, and the first mistake

docs/exercises.md has the exercises.
"""

import argparse
from collections.abc import Callable
import importlib.util
from pathlib import Path
import random

from latent_tokens import AugmentedRow, Group, Placement, UserError, make_batch

BLANK = '''"""Write the bodies; python -m extras.exercises my.py compares them with ours."""


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


def stands_before(k: int, t: int) -> bool:
    """The placement k_m: do its latents stand before verbal token t = 0, 1, ...?

    They stand after every k verbal tokens, and nothing stands before the first one.
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


def drawn(row: AugmentedRow) -> str:
    """A row as its slots: digits for verbal tokens, <j> for latents, | before the response."""
    M, slots = row.placement.total, []
    for source in row.sources:
        if source == M + row.query_length:
            slots.append("|")
        slots.append(f"<{source}>" if source < M else str(row.token_ids[source - M]))
    return " ".join(slots)


def cases(rng: random.Random) -> dict[str, tuple[tuple, object, str]]:
    """For each function: arguments, the right answer, and the row as a picture."""
    notation = rng.choice(["Start_1+Comma_1", "Comma_2", "3_1", "End_2+Comma_1", "Start_2"])
    row, reads = random_row(rng, notation)
    is_latent = [source < row.placement.total for source in row.sources]
    prompt = AugmentedRow(row.placement, row.token_ids[:row.query_length])
    commas, _ = random_row(rng, f"Comma_{rng.randint(1, 3)}")
    k, t = rng.randint(1, 4), rng.randint(0, 9)
    return {
        "position_ids": ((is_latent,), row.position_ids, drawn(row)),
        "sources": ((commas.token_ids, 3, commas.placement.total), commas.sources, drawn(commas)),
        "read_slots": ((is_latent, len(prompt.sources)), reads, drawn(row)),
        "stands_before": ((k, t), Group((str(k),), 1).stands_before(t, None, 99), ""),
    }


def first_mistake(name: str, function: Callable, rows: int = 300) -> str:
    """What a function gets wrong first, as a picture; "" if it is right on all rows."""
    rng = random.Random(0)
    for _ in range(rows):
        arguments, right, picture = cases(rng)[name]
        try:
            answer = function(*arguments)
        except Exception as error:  # whatever a student's function raises is its answer
            answer = repr(error)
        if answer != right:
            call = f"{name}({', '.join(map(repr, arguments))})"
            picture = f"    row    {picture}\n" if picture else ""
            return f"{picture}    call   {call}\n    yours  {answer}\n    right  {right}"
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.exercises", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--blank", action="store_true", help="print the empty functions")
    args = parser.parse_args(arguments)
    if args.blank or not args.file:
        print(BLANK, end="")
        return
    try:
        module = load(args.file)
    except UserError as error:
        parser.error(str(error))
    for name in cases(random.Random(0)):
        function = getattr(module, name, None)
        mistake = first_mistake(name, function) if function else "    not there"
        print(f"{name}: {'wrong' if mistake else 'right on 300 rows'}")
        if mistake:
            print(mistake)


if __name__ == "__main__":
    main()
