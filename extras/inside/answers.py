"""What tuned latents make the base write: answers of the longest length, first mistakes marked.

    python -m extras.answers runs/default --methods Start_4 Comma_4
"""

import argparse
from itertools import zip_longest

from extras.runs import Run, make_parser, positive
from latent_tokens import Placement
from tasks import Example, draw_examples
from train import answers, command


def marked(example: Example, text: str, width: int = 90) -> str:
    """A generated answer in lines of ``width``, with ``^`` under its first mistake."""
    pairs = enumerate(zip_longest(text, example.response))
    mistake = next((place for place, (wrote, true) in pairs if wrote != true), None)
    lines = ["without a mistake" if mistake is None else f"first mistake: character {mistake + 1}"]
    for start in range(0, max(len(text), (mistake or 0) + 1), width):
        lines.append("    " + text[start:start + width])
        if mistake is not None and start <= mistake < start + width:
            lines.append(" " * (4 + mistake - start) + "^")
    return "\n".join(lines)


def show(args: argparse.Namespace) -> None:
    run = Run.open(args)
    examples = draw_examples(run.task, [max(run.task.test_lengths)], "test", args.seed,
                             args.examples)
    names = args.methods or run.task.claim.baselines + run.task.claim.proposed
    for placement in dict.fromkeys(map(Placement.parse, names)):
        latents, method = run.latents(placement, args.seed), str(placement)
        for example, text in zip(examples, answers(run.base, latents, run.task, method, examples)):
            print(f"{method} on {example.query} {marked(example, text)}\n")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("answers", __doc__)
    parser.add_argument("--methods", nargs="+", metavar="M", help="default: those of the task")
    parser.add_argument("--examples", type=positive, default=1, metavar="N")
    command(show, parser, arguments)


if __name__ == "__main__":
    main()
