"""What latents cost in decoding.

    python -m extras.benchmark runs/default

All placements of the run on the longest test queries, relative to no latents. *Slots* are those of
a query with its answer, *places* what the KV cache holds at the end. The least of five counts.
"""

import argparse
from timeit import timeit

import torch

from extras.runs import Run, make_parser
from latent_tokens import LatentTokens, Placement
from tasks import Example, draw_examples
from train import answers, command, to_batch


def places_used(run: Run, latents: LatentTokens, examples: list[Example]) -> int:
    """Of the KV cache, for each row."""
    caches, make_cache = [], run.base.make_cache
    run.base.make_cache = lambda batch_size: caches.append(make_cache(batch_size)) or caches[0]
    answers(run.base, latents, run.task, "", examples)
    del run.base.make_cache
    return caches[0].is_seen.shape[1]


def measure(args: argparse.Namespace) -> None:
    run = Run.open(args)
    examples = draw_examples(run.task, [max(run.task.test_lengths)], "test", 0, 64)
    latents = {"base": LatentTokens(Placement(), run.base.config.n_embd)}
    latents |= {row["method"]: run.latents(Placement.parse(row["method"]), args.seed)
                for row in run.rows if "latents" in row and row["base"] == run.number
                and row["task"] == run.task.name and row["seed"] == args.seed}
    slots = [to_batch(each.placement, examples[:1]).sources.shape[1] for each in latents.values()]
    rounds = [[timeit(lambda: answers(run.base, each, run.task, "", examples), number=1)
               for each in latents.values()] for _ in range(6)]
    places = [places_used(run, each, examples) for each in latents.values()]
    seconds = [min(times) for times in zip(*rounds[1:])]  # the first round is to get warm
    print(f"{run.task.name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
          f"{'':24}{'slots':>8}{'relative':>10}{'places':>8}{'relative':>10}{'seconds':>10}")
    for name, mine, stored, spent in zip(latents, slots, places, seconds):
        print(f"{name:24}{mine:8}{mine / slots[0]:10.2f}{stored:8}{stored / places[0]:10.2f}"
              f"{spent / seconds[0]:10.2f}")


if __name__ == "__main__":
    command(measure, make_parser("benchmark", __doc__), None)
