"""One prompt, decoded with tuned latents and drawn like the picture at the top of latent_tokens.py.

    python -m extras.show runs/default --method Comma_4 --prompt "44@47=83"

Every slot with its input, its position id, and the token that is read off it. <S>, <E> and <C> are
latents of Start, End and Comma, <8> is that of 8_1. Where m > 1 they have numbers, from 1 as in the
paper: <C1> <C2>, and <8.1> <8.2>. A group in several places is named after the first.

Without --prompt: the first query of the test. What is wider than the terminal goes on below.
"""

import argparse
import shutil

from extras.runs import Run, make_parser, positive
from latent_tokens import Placement, UserError, generate, make_batch
from tasks import ALPHABET, END, TOKEN_ID, decode, draw_examples, encode
from train import command

MARGIN = 13  # columns of text left of the first slot
GAP = 6  # and between query and response


def latent_names(placement: Placement) -> list[str]:
    """The M names, in the order of the vectors."""
    places = [group.places[0] for group in placement.groups]
    short = [place if place.isdigit() else place[0] for place in places]
    if len(set(short)) < len(short):  # a separator of your own, such as Equals beside End
        short = places
    return [f"<{name}{'.' * name.isdigit()}{number + 1}>" if group.m > 1 else f"<{name}>"
            for name, group in zip(short, placement.groups) for number in range(group.m)]


def diagram(placement: Placement, query: str, response: str, width: int) -> str:
    """Query and response with their latents, in blocks of at most ``width`` columns of text.

    With ``Start_1+Comma_1``, ``1,2`` and ``3,4`` it is the picture at the top of latent_tokens.py.
    """
    batch = make_batch(placement, [encode(query)], [encode(response)])
    sources, position_ids = batch.sources[0].tolist(), batch.position_ids[0].tolist()
    read_slots = batch.read_slots[0].tolist()
    inputs, slots = [*latent_names(placement), *query, *response], range(len(sources))
    read_for = dict(zip(read_slots, response))
    rows = {"slot": [str(slot) for slot in slots],
            "input": [inputs[source] for source in sources],
            "position_id": [str(position_id) for position_id in position_ids],
            "predicts": [read_for.get(slot, "") for slot in slots]}
    query_slots = read_slots[0] + 1  # the first response token is read off the last of them
    longest = max(len(text) for row in rows.values() for text in row)
    cell = max(5, longest + 1) | 1  # an odd number, so that a cell has a middle
    count = max(1, (width - MARGIN - GAP - 5) // cell)  # 5: "response" over a single cell
    return "\n\n".join(
        block({name: row[start:start + count] for name, row in rows.items()},
              max(0, query_slots - start), cell) for start in range(0, len(slots), count))


def block(rows: dict[str, list[str]], query_slots: int, cell: int) -> str:
    """Rows of one length, in cells. The response begins after this many slots, if at all."""
    lines = {name: "".join(f"{text:^{cell}}" for text in row) for name, row in rows.items()}
    before, middle = query_slots * cell, " " * (cell // 2)
    heading = middle + "query" if query_slots else ""
    if query_slots < len(rows["slot"]):
        gap = " " * GAP if query_slots else ""
        lines = {name: line[:before] + gap + line[before:] for name, line in lines.items()}
        heading = heading.ljust(before + len(gap)) + middle + "response"
    lines = {"": heading} | lines
    return "\n".join((name.ljust(MARGIN) + line).rstrip() for name, line in lines.items())


def show(args: argparse.Namespace) -> None:
    if args.prompt == "" or set(args.prompt or "") - TOKEN_ID.keys():
        raise UserError(f"--prompt {args.prompt!r}: write some of the characters {ALPHABET}")
    placement, run = Placement.parse(args.method), Run.open(args)
    latents = run.latents(placement, args.seed)
    first, = draw_examples(run.task, run.task.test_lengths[:1], "test", args.seed, 1)
    query = args.prompt or first.query
    response = decode(generate(run.base, latents, [encode(query)], args.tokens, TOKEN_ID[END])[0])
    print(f"{placement} on {query} writes {response}\n")
    print(diagram(placement, query, response, shutil.get_terminal_size((100, 24)).columns))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("show", __doc__)
    parser.add_argument("--method", required=True, metavar="M", help="a placement, as Comma_4")
    parser.add_argument("--prompt", metavar="TEXT", help="default: the first query of the test")
    parser.add_argument("--tokens", type=positive, default=20, metavar="N", help="default: 20")
    command(show, parser, arguments)


if __name__ == "__main__":
    main()
