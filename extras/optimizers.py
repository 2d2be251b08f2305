"""Muon or AdamW for the latents, at four rates each: what does every pair give?

    python -m extras.optimizers runs/default --task generation --base 0 --methods Start_4 Comma_4

The results join those of the run, under names such as ``Comma_4:AdamW-0.3``. Weight decay is 0.05
throughout. Two groups of one placement are rows of one matrix, which Muon pushes apart; so function
specialization is worth a look with both:

    --task repetition --methods Start,Comma_2 Start_2+Comma_2
"""

import argparse
from dataclasses import replace
from itertools import product

import torch

from extras.runs import Run, make_parser
from latent_tokens import Placement, UserError
from train import Muon, command, tune

OPTIMIZERS = {"Muon": Muon, "AdamW": torch.optim.AdamW}
RATES = {"Muon": (0.5, 1.0, 2.0, 4.0), "AdamW": (0.03, 0.1, 0.3, 1.0)}


def add_result(run: Run, placement: Placement, optimizer: str, lr: float, seed: int) -> None:
    name = f"{placement}:{optimizer}-{lr:g}"
    config = replace(run.tuning(seed), trials=((lr, 0.05),))

    def measure() -> dict:
        latents, trials = tune(run.base, run.task, placement, seed, config, OPTIMIZERS[optimizer])
        return run.test(latents, name, seed, config) | {"trials": trials}

    run.add(name, seed, config, measure)


def compare(args: argparse.Namespace) -> None:
    run = Run.open(args)
    run.tuning(args.seed)  # refused here where there is no result to join
    names = args.methods or run.task.claim.baselines + run.task.claim.proposed
    placements = [Placement.parse(name) for name in names]
    for placement, (optimizer, rates) in product(placements, RATES.items()):
        for lr in rates:
            try:
                add_result(run, placement, optimizer, lr, args.seed)
            except UserError as failure:  # a rate that is too high; the others go on
                print(failure)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("optimizers", __doc__)
    parser.add_argument("--methods", nargs="+", metavar="M", help="placements; default: the task's")
    command(compare, parser, arguments)


if __name__ == "__main__":
    main()
