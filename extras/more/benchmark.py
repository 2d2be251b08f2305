"""What latents cost in decoding and tuning.

    python -m extras.benchmark runs/default

Decoding: the claim's methods on the longest test queries, relative to no latents. *Slots* are those
of a query with its answer; the KV cache in use has a row for each, so memory grows as they do.
Tuning: a step of each against one that tunes all weights. What is compared is timed in turn, and
the least of several times counts: a machine has its moods.
"""

import argparse
from collections.abc import Callable
from timeit import timeit

import torch

from extras.runs import Run, make_parser
from latent_tokens import LatentTokens, Placement
from tasks import draw_examples
from train import Muon, TuneConfig, answers, command, response_loss, to_batch


def least(*functions: Callable) -> list[float]:
    """Seconds of each. The first round is to get warm."""
    rounds = [[timeit(each, number=1) for each in functions] for _ in range(6)]
    return [min(times) for times in zip(*rounds[1:])]


def decoding(run: Run, latents: LatentTokens) -> tuple[int, Callable]:
    """Slots of the longest test query with its response, and a function that answers 64 such."""
    task = run.task
    examples = draw_examples(task, [max(task.test_lengths)], "test", 0, 64)
    slots = to_batch(latents.placement, examples[:1]).sources.shape[1]
    return slots, lambda: answers(run.base, latents, task, "", examples)


def tuning_step(run: Run, latents: LatentTokens, train_all: bool) -> Callable:
    """A step of the latents alone, or of all weights."""
    examples = draw_examples(run.task, run.task.id_lengths[-1:], "tune", 0, TuneConfig.batch_size)
    trained = run.base if train_all else latents
    optimizer = (torch.optim.AdamW if train_all else Muon)(trained.parameters(), lr=0.0)

    def step() -> None:
        run.base.requires_grad_(train_all)
        response_loss(run.base, latents, to_batch(latents.placement, examples)).backward()
        optimizer.step()
        trained.zero_grad()
        run.base.requires_grad_(False)
    return step


def measure(args: argparse.Namespace) -> None:
    run = Run.open(args)
    latents = {"base": LatentTokens(Placement(), run.base.config.n_embd)}
    latents |= {name: run.latents(Placement.parse(name), args.seed)
                for name in run.task.claim.baselines + run.task.claim.proposed}
    slots, functions = zip(*(decoding(run, each) for each in latents.values()))
    seconds = least(*functions)
    print(f"{run.task.name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
          f"{'':24}{'slots':>8}{'relative':>10}{'seconds':>10}{'tuning step':>14}")
    for name, mine, spent in zip(latents, slots, seconds):
        step = ""
        if name != "base":
            alone, everything = least(*(tuning_step(run, latents[name], train_all)
                                        for train_all in (False, True)))
            step = f"{alone / everything:.2f}"
        print(f"{name:24}{mine:8}{mine / slots[0]:10.2f}{spent / seconds[0]:10.2f}{step:>14}")


def main(arguments: list[str] | None = None) -> None:
    command(measure, make_parser("benchmark", __doc__), arguments)


if __name__ == "__main__":
    main()
