"""Tuned vectors in other places: a quick score, for the exercises of docs/exercises.md.

    python -m extras.score Comma_4 Start_4        what runs/default has tuned, on few queries
    python -m extras.score Start_4:Comma_4        the vectors of Start_4, placed as Comma_4
    python -m extras.score Comma_4:Comma_2        the first two vectors of Comma_4
    python -m extras.score Comma_4:shuffled       or random: see extras/controls.py
    python -m extras.score --tune Equals_4        tune first, once instead of once a trial

Accuracy in Generation on 32 queries of the test. Nothing is saved, so an edit of the code can be
tried on a finished run.
"""

import argparse
from pathlib import Path
from statistics import fmean

from extras.controls import alter, load_frozen, open_run
from extras.show import load_latents
from latent_tokens import LatentTokens, Placement, UserError
from model import GPT
from tasks import TASKS, draw_examples
from train import Method, Run, answers, one_line_exits, tune

TASK, QUERIES = TASKS["generation"], 32


def place(latents: LatentTokens, notation: str) -> LatentTokens:
    """The same vectors in another placement: the first ones, where that has fewer.

    Raises UserError where it has more.
    """
    placed = LatentTokens(Placement.parse(notation), latents.vectors.shape[1])
    count = placed.placement.total
    if count > latents.placement.total:
        raise UserError(f"{notation} needs {count} vectors, {latents.placement} has "
                        f"{latents.placement.total}")
    placed.vectors.data.copy_(latents.vectors.detach()[:count])
    return placed


def make(name: str, run: Run, args: argparse.Namespace, n_embd: int) -> LatentTokens:
    """The latents that a name on the command line stands for. Raises UserError on any other."""
    notation, _, change = name.partition(":")
    latents = load_latents(run, TASK, Method(Placement.parse(notation)), args.base, args.seed,
                           n_embd)
    if change in ("random", "shuffled"):
        return alter(latents, change, args.seed)
    return place(latents, change) if change else latents


def score(base: GPT, latents: LatentTokens, seed: int) -> list[float]:
    """Accuracy ID, OOD and far OOD."""
    examples = draw_examples(TASK, TASK.test_lengths, "test", seed, QUERIES)
    texts = answers(base, latents, TASK, Method(latents.placement), examples)
    scores = [TASK.score(example, text) for example, text in zip(examples, texts)]
    return [fmean(each[length].accuracy for each in scores for length in lengths)
            for lengths in (TASK.id_lengths, TASK.ood_lengths, TASK.far_lengths)]


def show(args: argparse.Namespace) -> None:
    """Load, tune, print: a line for the base, then one for each name."""
    run = open_run(args.folder)
    base = load_frozen(args.folder / f"{TASK.name}-base{args.base}.pt")
    latents = {"base": LatentTokens(Placement(), base.config.n_embd)}
    latents |= {name: make(name, run, args, base.config.n_embd) for name in args.names}
    if args.tune:
        method, (lr, weight_decay) = Method(Placement.parse(args.tune)), run.tuning.trials[0]
        _, tuned = tune(base, TASK, method, lr, weight_decay, args.seed, run.tuning)
        latents[f"{args.tune}, tuned now"] = tuned
    print(f"{'accuracy':24}{'ID':>8}{'OOD':>8}{'far OOD':>8}")
    for name, each in latents.items():
        print(f"{name:24}" + "".join(f"{mean:8.2f}" for mean in score(base, each, args.seed)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.score", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="M", help="as above")
    parser.add_argument("--tune", metavar="M", help="a placement")
    parser.add_argument("--folder", type=Path, default=Path("runs/default"))
    parser.add_argument("--base", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of tuning and test")
    with one_line_exits(parser):
        show(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
