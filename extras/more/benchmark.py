"""What latents cost in decoding.

    python -m extras.benchmark runs/default

The claim's methods on the longest test queries, relative to no latents. *Slots* are those of a
query with its answer; the KV cache in use has a row for each, so memory grows as they do. All are
timed in turn, and the least of several times counts: a machine has its moods.
"""

import argparse
from timeit import timeit

import torch

from extras.runs import Run, make_parser
from latent_tokens import LatentTokens, Placement
from tasks import draw_examples
from train import answers, command, to_batch


def measure(args: argparse.Namespace) -> None:
    run = Run.open(args)
    examples = draw_examples(run.task, [max(run.task.test_lengths)], "test", 0, 64)
    latents = {"base": LatentTokens(Placement(), run.base.config.n_embd)}
    latents |= {name: run.latents(Placement.parse(name), args.seed)
                for name in run.task.claim.baselines + run.task.claim.proposed}
    slots = [to_batch(each.placement, examples[:1]).sources.shape[1] for each in latents.values()]
    rounds = [[timeit(lambda: answers(run.base, each, run.task, "", examples), number=1)
               for each in latents.values()] for _ in range(6)]
    seconds = [min(times) for times in zip(*rounds[1:])]  # the first round is to get warm
    print(f"{run.task.name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
          f"{'':24}{'slots':>8}{'relative':>10}{'seconds':>10}")
    for name, mine, spent in zip(latents, slots, seconds):
        print(f"{name:24}{mine:8}{mine / slots[0]:10.2f}{spent / seconds[0]:10.2f}")


if __name__ == "__main__":
    command(measure, make_parser("benchmark", __doc__), None)
