"""What tuned latents make the base write: generated answers in full, first mistakes marked.

    python -m extras.answers runs/default --methods Start_4 Comma_4

The examples are the first ones of the test with seed 0, at the longest length that is tested.
"""

import argparse
from itertools import zip_longest
from pathlib import Path

from extras.controls import load_frozen, open_run
from extras.show import load_latents
from latent_tokens import UserError
from tasks import TASKS, Example, draw_examples
from train import METHODS, Method, answers


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.answers", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/default"))
    parser.add_argument("--task", default="generation", choices=TASKS)
    parser.add_argument("--base", type=int, default=0, metavar="N")
    parser.add_argument("--methods", nargs="+", metavar="M", help="default: those of the task")
    parser.add_argument("--examples", type=int, default=1, metavar="N")
    args = parser.parse_args(arguments)
    task = TASKS[args.task]
    try:
        run = open_run(args.folder)
        base = load_frozen(args.folder / f"{task.name}-base{args.base}.pt")
        examples = draw_examples(task, [max(task.test_lengths)], "test", 0, args.examples)
        names = args.methods or METHODS.get(task.name, METHODS["generation"])
        for method in map(Method.parse, names):
            latents = load_latents(run, task, method, args.base, 0, base.config.n_embd)
            for example, text in zip(examples, answers(base, latents, task, method, examples)):
                print(f"{method} on {example.query} {marked(example, text)}\n")
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
