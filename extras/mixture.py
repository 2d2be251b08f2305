"""A dial between two rules: vectors tuned on each, mixed. (docs/neighbours.md, refusal tokens)

    python -m extras.mixture runs/default

Two times End_4 is tuned on Generation, once on the target rule and once on another. Then the share
of queries whose first equation follows the one or the other, as the mixture goes from this to that.
"""

import argparse
import random

from extras.runs import Run, make_parser, place
from extras.tables import markdown
from latent_tokens import LatentTokens, Placement, UserError
from tasks import Example, Generation, draw_examples, equation, two_digits
from train import answers, command, tune

END_4 = Placement.parse("End_4")
SHARES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)


class Neutral(Generation):
    """Generation with a random result in the query, so that it tells no rule."""

    def __init__(self, rule: str):
        self.target_rule = rule

    def example(self, rng: random.Random, length: int) -> Example:
        chain = [f"{two_digits(rng)}@{two_digits(rng)}={two_digits(rng)}"]
        for _ in range(length):
            chain.append(self.after(chain[-1]))
        return Example(chain[0], "".join("," + item for item in chain[1:]))


def tuned_on(run: Run, rule: str, seed: int) -> LatentTokens:
    return tune(run.base, Neutral(rule), END_4, seed, run.tuning(seed))[0]


def follows(rule: str, query: str, text: str) -> bool:
    return text == "," + equation(rule, query[3:5], query[6:8])


def measure(args: argparse.Namespace) -> None:
    run = Run.open(args)
    if run.task.name != "generation" or args.rule not in run.task.rules:
        raise UserError(f"--rule {args.rule}: choose one that Generation's text states, as x+7")
    rules = run.task.target_rule, args.rule
    ours, other = (tuned_on(run, rule, args.seed).vectors.detach() for rule in rules)
    examples, lines = draw_examples(Neutral(rules[0]), [1], "test", args.seed, 128), []
    for share in SHARES:
        latents = place(share * ours + (1 - share) * other, END_4)
        texts = answers(run.base, latents, run.task, "End_4", examples)
        followed = [sum(follows(rule, each.query, text) for each, text in zip(examples, texts))
                    / len(examples) for rule in rules]
        lines.append([f"{share:g}", *(f"{each:.2f}" for each in followed)])
    print(markdown([f"share of {rules[0]}", *(f"follows {rule}" for rule in rules)], lines), end="")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("mixture", __doc__)
    parser.add_argument("--rule", default="x+7", help="the other one; default: x+7")
    command(measure, parser, arguments)


if __name__ == "__main__":
    main()
