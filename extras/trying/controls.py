"""Control rows for a run of train.py: are placement and learned vectors what matters?

    python -m extras.controls runs/default --task generation --base 60
    python -m extras.controls runs/default --rows full Start_20       these alone

Their results join those of the run. Here Comma_4 is the first placement that the claim proposes:

    Comma_4-own          latents with positions of their own
    Start_20, Start_96   as many latents as Comma_4 inserts in the longest tuned, tested example
    full                 all weights tuned; and how well all other rules of the family are followed
                         when they are stated, before and after: does the base forget?
    Comma_4:random       untrained vectors of the same lengths as the tuned ones
    Comma_4:shuffled     every tuned vector in the place of the next
    Start_4:Comma_4      (by --rows alone) what is tuned as Start_4, used as Comma_4
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from functools import cache
from statistics import fmean

import torch

from extras.runs import CHANGES, READY, Control, Run, make_parser, other_rules
from latent_tokens import LatentTokens, Placement, UserError
from model import GPT, weights_checksum
from tasks import Task, random_source
from train import Start, TuneConfig, command, complete, key, test, to_batch, tune

FULL_RATES = (1e-4, 3e-4, 1e-3)  # learning rates at which starts of ``full`` begin


def default_rows(task: Task) -> list[str]:
    proposed = Placement.parse(task.claim.proposed[0])
    without_sharing = replace(proposed, share_positions=False)
    rows = [*task.claim.baselines, *task.claim.proposed, str(without_sharing)]
    for lengths in (task.id_lengths, task.test_lengths):
        longest = task.example(random_source("layout", 0), max(lengths))
        batch = to_batch(proposed, [longest])
        rows.append(f"Start_{batch.sources.shape[1] - batch.token_ids.shape[1]}")
    return [*rows, *(f"{proposed}:{change}" for change in CHANGES if proposed.total > 1), "full"]


class AllWeights(Start):
    """What is trained is a copy of the base, without latents."""

    def __init__(self, base: GPT, placement: Placement, rng: torch.Generator, lr: float, config):
        self.model = deepcopy(base).requires_grad_(True)
        self.latents = LatentTokens(placement, base.config.n_embd)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr, weight_decay=0.05)
        self.losses = []


def follow(rules: list[Task], model: GPT, none: LatentTokens, method: str, seed: int,
           config: TuneConfig) -> dict:
    """As of one test, but means over all these rules, which share its examples."""
    share = replace(config, test_examples=config.test_examples // len(rules))
    results = [test(model, none, rule, method, seed, share) for rule in rules]
    return results[0] | {
        metric: [fmean(values) for values in zip(*(result[metric] for result in results))]
        for metric in ("accuracy", "exact")}


def add_full(run: Run, seed: int) -> None:
    """All weights tuned on the target rule: are other rules still followed when stated?"""
    config, rules = run.tuning(seed), other_rules(run.task)
    none = LatentTokens(Placement(), run.base.config.n_embd)
    tuned = cache(lambda: tune(run.base, run.task, none.placement, seed,
                               replace(config, starts=FULL_RATES), AllWeights))
    trained = {"trained": sum(weights.numel() for weights in run.base.parameters())}
    run.add("full", seed, config, lambda: trained | tuned()[1]
            | test(tuned()[0].model, none, run.task, "full", seed, config))
    for method in ("instruction", "reminders") if rules else ():
        run.add(f"{method}, other rules, before full", seed, config,
                lambda: follow(rules, run.base, none, method, seed, config))
        run.add(f"{method}, other rules, after full", seed, config,
                lambda: trained | follow(rules, tuned()[0].model, none, method, seed, config))


def add_tuned(run: Run, placement: Placement, seed: int) -> None:
    row = run.new_row(str(placement), seed, run.tuning(seed))
    if key(row) not in map(key, run.rows):
        run.rows.append(complete(row, run.base, run.task, run.folder, run.tuning(seed)))


def add_altered(run: Run, control: Control, seed: int) -> None:
    config = run.tuning(seed, str(control.placement))

    def measure() -> dict:
        latents = control.of(run.latents(control.placement, seed), seed)
        return {"trained": latents.vectors.numel() * (control.change != "random"),
                "vectors_checksum": weights_checksum(latents),
                **test(run.base, latents, run.task, str(control), seed, config)}

    run.add(str(control), seed, config, measure)


def add_controls(args: argparse.Namespace) -> None:
    run = Run.open(args)
    if run.folder == READY:
        raise UserError(f"{READY} is for reading: make a run of your own with python train.py")
    kinds = [name if name == "full" else (Control if ":" in name else Placement).parse(name)
             for name in args.rows or default_rows(run.task)]
    for kind in kinds:  # once all names are understood
        if kind == "full":
            add_full(run, args.seed)
        elif isinstance(kind, Control):
            add_altered(run, kind, args.seed)
        else:
            add_tuned(run, kind, args.seed)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("controls", __doc__)
    parser.add_argument("--rows", nargs="+", metavar="R", help="default: all of the task")
    command(add_controls, parser, arguments)


if __name__ == "__main__":
    main()
