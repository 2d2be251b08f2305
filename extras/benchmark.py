"""What latents cost in decoding and tuning.

    python -m extras.benchmark runs/default

Decoding: the claim's methods on the longest test queries, relative to no latents. *Slots* are those
of a query with its answer; the KV cache in use has a row for each, so memory grows as they do.
Tuning: a step of each against one that tunes all weights. Each time is the least of several. Start
it on a quiet machine.
"""

import argparse
from collections.abc import Callable
from timeit import repeat

import torch

from extras.runs import Run, make_parser
from latent_tokens import LatentTokens, Placement
from tasks import draw_examples
from train import Muon, TuneConfig, answers, command, response_loss, to_batch


def least(function: Callable) -> float:
    """Seconds, after a first time to get warm."""
    return min(repeat(function, number=1, repeat=4)[1:])


def decoding(run: Run, latents: LatentTokens, count: int = 64) -> tuple[int, float]:
    """Slots of the longest query with its response, and seconds for the answers to ``count``."""
    task = run.task
    examples = draw_examples(task, [max(task.test_lengths)], "test", 0, count)
    slots = to_batch(latents.placement, examples[:1]).sources.shape[1]
    return slots, least(lambda: answers(run.base, latents, task, "", examples))


def tuning_step(run: Run, latents: LatentTokens, train_all: bool) -> float:
    """Seconds; of the latents alone, or of all weights."""
    examples = draw_examples(run.task, run.task.id_lengths[-1:], "tune", 0, TuneConfig.batch_size)
    trained = run.base if train_all else latents
    optimizer = (torch.optim.AdamW if train_all else Muon)(trained.parameters(), lr=0.0)

    def step() -> None:
        response_loss(run.base, latents, to_batch(latents.placement, examples)).backward()
        optimizer.step()
        trained.zero_grad()

    run.base.requires_grad_(train_all)
    seconds = least(step)
    run.base.requires_grad_(False)
    return seconds


def measure(args: argparse.Namespace) -> None:
    run = Run.open(args)
    none = LatentTokens(Placement(), run.base.config.n_embd)
    slots, seconds = decoding(run, none)
    print(f"{run.task.name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
          f"{'':24}{'slots':>8}{'relative':>10}{'seconds':>10}{'tuning step':>14}\n"
          f"{'base':24}{slots:8}{1:10.2f}{1:10.2f}")
    for name in run.task.claim.baselines + run.task.claim.proposed:
        latents = run.latents(Placement.parse(name), args.seed)
        more_slots, more_seconds = decoding(run, latents)
        ratio = tuning_step(run, latents, False) / tuning_step(run, latents, True)
        print(f"{name:24}{more_slots:8}{more_slots / slots:10.2f}{more_seconds / seconds:10.2f}"
              f"{ratio:14.2f}")


def main(arguments: list[str] | None = None) -> None:
    command(measure, make_parser("benchmark", __doc__), arguments)


if __name__ == "__main__":
    main()
