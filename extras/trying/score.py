"""Tuned vectors in other places: a quick score, for the exercises of docs/exercises.md.

    python -m extras.score Comma_4 Start_4        what runs/default has tuned, on few queries
    python -m extras.score Start_4:Comma_4        the vectors of Start_4, placed as Comma_4
    python -m extras.score Comma_4:shuffled       or random: see controls.py
    python -m extras.score --tune Equals_4        tune first, with one start

By items (accuracy): a mistake does not hide what comes after. On some 32 queries of the test. No
result is saved, so an edit of the code can be tried on a finished run.
"""

import argparse
from dataclasses import replace

from extras.runs import Control, Run, make_parser
from latent_tokens import LatentTokens, Placement
from train import TuneConfig, command, split_means, test, tune

QUICK = TuneConfig(test_examples=32)


def make(run: Run, name: str, seed: int) -> LatentTokens:
    """The latents that a name on the command line stands for. Raises UserError on any other."""
    placement, changed, _ = name.partition(":")
    latents = run.latents(Placement.parse(placement), seed)
    return Control.parse(name).of(latents, seed) if changed else latents


def score(run: Run, latents: LatentTokens, seed: int) -> dict[str, float]:
    """The mean on each split."""
    result = test(run.base, latents, run.task, str(latents.placement), seed, QUICK)
    return split_means(run.new_row("", seed, QUICK) | result, "accuracy")


def tune_once(run: Run, placement: Placement, seed: int) -> LatentTokens:
    one_start = replace(run.tuning(seed), starts=(1.0,))
    return tune(run.base, run.task, placement, seed, one_start)[0].latents


def show(args: argparse.Namespace) -> None:
    run = Run.open(args)
    latents = {"base": LatentTokens(Placement(), run.base.config.n_embd)}
    latents |= {name: make(run, name, args.seed) for name in args.names}
    if args.tune:
        latents[f"{args.tune}, tuned now"] = tune_once(run, Placement.parse(args.tune), args.seed)
    print(f"{'accuracy':24}" + "".join(f"{split:>8}" for split in run.task.splits))
    for name, each in latents.items():
        means = score(run, each, args.seed).values()
        print(f"{name:24}" + "".join(f"{mean:8.2f}" for mean in means))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("score", __doc__, folder="--folder")
    parser.add_argument("names", nargs="*", metavar="M", help="as above")
    parser.add_argument("--tune", metavar="M", help="a placement")
    command(show, parser, arguments)


if __name__ == "__main__":
    main()
