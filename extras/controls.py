"""Control rows for a run of train.py: are placement and learned vectors what matters?

    python -m extras.controls runs/default --task generation --base 0

Their rows join those of the run in its ``results.json``. The first three are tuned on its base, the
others are made of its tuned latents:

    Comma_4-own          latents with positions of their own
    Start_24, Start_100  as many latents at the start (End_: end) of the query as Comma_4 inserts in
                         all, at the longest length that is tuned on, and at the longest tested one
    full                 all weights tuned; and how well all other rules of the family are followed
                         when they are stated, before and after: does the base forget?
    Comma_4:random       untrained vectors of the same lengths as the tuned ones
    Comma_4:shuffled     every tuned vector in the place of the next
    Start_2+Comma_2:removed  (Repetition) without the group before commas

``--rows full Start_24`` asks for these alone.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import product
import json
from pathlib import Path
from statistics import fmean
import time

import torch
import torch.nn.functional as F

from latent_tokens import LatentTokens, UserError
from model import GPT
from tasks import TASKS, Task, random_source
from train import (METHODS, REFERENCES, Method, Run, TuneConfig, one_line_exits, only_writer, test,
                   tune_best, write)

TUNED = {  # tuned anew; the numbers are those of the latents that the proposed method inserts
    "generation": ["Comma_4-own", "Start_24", "End_24", "Start_100", "End_100"],
    "repetition": ["Start_2+Comma_2-own", "Start_20", "End_20", "Start_44", "End_44"],
    "summation": ["Comma_2-own", "4_2-own", "Start_22", "End_22", "Start_50", "End_50"],
}
ALTERED = {  # made of latents that are tuned already
    "generation": ["Comma_4:random"],
    "repetition": [f"Start_2+Comma_2:{control}" for control in ("random", "shuffled", "removed")],
    "summation": ["Comma_2:random"],
}


def alter(latents: LatentTokens, control: str, seed: int) -> LatentTokens:
    """Tuned latents made random, shuffled or removed."""
    placement, vectors = latents.placement, latents.vectors.detach()
    if control == "removed":
        placement = replace(placement, groups=placement.groups[:-1])
    elif control == "shuffled":
        vectors = vectors.roll(1, dims=0)
    elif control == "random":
        generator = torch.Generator().manual_seed(seed + 1_000_000)  # not the one of initial values
        noise = torch.randn(vectors.shape, generator=generator)
        vectors = F.normalize(noise, dim=1) * vectors.norm(dim=1, keepdim=True)
    else:
        raise UserError(f"unknown control {control!r}: choose from random, shuffled, removed")
    result = LatentTokens(placement, vectors.shape[1])
    result.vectors.data.copy_(vectors[:placement.total])
    result.vectors.requires_grad_(control != "random")  # these were not trained
    return result


def open_run(folder: Path) -> Run:
    """A run with the settings in its ``results.json``. Raises UserError if there is none."""
    try:
        config = json.loads((folder / "results.json").read_text())["config"]
        tuning = TuneConfig(**{name: tuple(value) if isinstance(value, list) else value
                               for name, value in config.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} does not hold a run of this train.py: {error!r}") from error
    return Run(folder, tuning)


def load_frozen(path: Path) -> GPT:
    """The base in a file of train.py. Raises UserError if it cannot be read."""
    try:
        return GPT.load(path)
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def opened(folder: Path, task: Task, number: int) -> Iterator[tuple[Run, GPT]]:
    """A run to add rows to, and one of its bases. Raises UserError if there is no such run."""
    open_run(folder)  # before anything is made there
    with only_writer(folder):
        run = open_run(folder)
        path = folder / f"{task.name}-base{number}.pt"
        base = load_frozen(path)
        if path.name not in run.results["bases"]:
            raise UserError(f"{path} has no rows in this run: train.py has not finished it, or "
                            "refused it")
        run.tie_to_base(task, number, base)
        yield run, base


def other_rules(task: Task) -> list[Task]:
    """The task with each other rule of its family as its target rule."""
    rng, tasks = random_source("other rules", 0), {}
    for _ in range(1000):  # enough to draw each of Generation's 54 rules
        other = copy(task)
        other.target_rule = task.any_rule(rng, task.target_rule)
        if other.target_rule != task.target_rule:
            tasks[other.target_rule] = other
    return list(tasks.values())


def follow_other_rules(model: GPT, latents: LatentTokens, task: Task, method: Method, seed: int,
                       tuning: TuneConfig) -> list[dict]:
    """Rows as of one test, but means over all other rules, which share its examples."""
    others, rows = other_rules(task), defaultdict(list)
    for other in others:
        share = replace(tuning, test_examples=tuning.test_examples // len(others))
        for row in test(model, latents, other, method, seed, share):
            rows[row["length"]].append(row)
    return [each[0] | {metric: fmean(row[metric] for row in each)
                       for metric in ("accuracy", "exact")} for each in rows.values()]


def add_full(run: Run, base: GPT, task: Task, number: int, seed: int) -> None:
    """All weights tuned on the target rule: are other rules still followed when stated?"""
    started, full = time.perf_counter(), REFERENCES["full"]
    model, latents, record = tune_best(base, task, full, seed, run.tuning)
    rows = test(model, latents, task, full, seed, run.tuning)
    for name, (when, tested) in product(("instruction", "reminders"),
                                        (("before", base), ("after", model))):
        rows += [row | {"method": f"{name}, other rules, {when} full"} for row in
                 follow_other_rules(tested, latents, task, REFERENCES[name], seed, run.tuning)]
    run.add(rows, number, started, record)


def tuned_latents(run: Run, base: GPT, task: Task, method: Method, number: int,
                  seed: int) -> LatentTokens:
    """The latents that a run has tuned. A file that is lost is made anew: the same vectors."""
    path = run.latents_path(task, method, number, seed)
    try:
        return LatentTokens.load(path, base.config.n_embd)
    except UserError as error:
        print(f"{error}: tuning them anew")
    _, latents, _ = tune_best(base, task, method, seed, run.tuning)
    write(path, latents.save)
    return latents


def add_altered(run: Run, base: GPT, task: Task, name: str, number: int, seed: int) -> None:
    """Test what ``alter`` makes of tuned latents."""
    started, (notation, _, control) = time.perf_counter(), name.partition(":")
    method = Method.parse(notation)
    latents = alter(tuned_latents(run, base, task, method, number, seed), control, seed)
    rows = test(base, latents, task, replace(method, control=control), seed, run.tuning)
    run.add(rows, number, started)


def all_rows(task: Task) -> list[str]:
    """The names of all that a task is compared with."""
    return [*(name for table in (METHODS, TUNED, ALTERED) for name in table.get(task.name, [])),
            "full"]


def add_controls(run: Run, base: GPT, task: Task, number: int, seed: int, names: list[str]) -> None:
    """The rows of these names for one task, base and seed that are not there yet."""
    for name in names:
        if run.has(task, name, number, seed):
            continue
        if name == "full":
            add_full(run, base, task, number, seed)
        elif ":" in name:
            add_altered(run, base, task, name, number, seed)
        else:
            run.tune_and_test(base, task, Method.parse(name), number, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.controls", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/default"))
    parser.add_argument("--task", default="generation", choices=TASKS)
    parser.add_argument("--base", type=int, default=0, metavar="N")
    parser.add_argument("--rows", nargs="+", metavar="R", help="default: all of the task")
    args = parser.parse_args(arguments)
    task = TASKS[args.task]
    with one_line_exits(parser), opened(args.folder, task, args.base) as (run, base):
        add_controls(run, base, task, args.base, 0, args.rows or all_rows(task))


if __name__ == "__main__":
    main()
