"""Control rows for a run of train.py: are placement and learned vectors what matters?

    python -m extras.controls runs/default --task generation

Their rows join those of the run in its ``results.json``. The first three are tuned on its base, the
others are made of its tuned latents:

    Comma_4-own          latents with positions of their own
    Start_24, Start_100  as many latents at the start (End_: end) of the query as Comma_4 inserts in
                         all, at the longest length that is tuned on, and at the longest tested one
    full                 all weights tuned; and what is left of the other tasks, with an instruction
    Comma_4:random       untrained vectors of the same lengths as the tuned ones
    Comma_4:shuffled     every tuned vector in the place of the next
    Comma_4:removed      without the last group
"""

import argparse
from dataclasses import replace
import json
from pathlib import Path
import time

import torch
import torch.nn.functional as F

from latent_tokens import LatentTokens, UserError
from model import GPT, GPTConfig
from tasks import TASKS, Task
from train import (METHODS, REFERENCES, Method, PretrainConfig, Run, TuneConfig, pretrain, test,
                   tune_best)

TUNED = {  # tuned anew; the numbers are those of the latents that the proposed method inserts
    "generation": ["Comma_4-own", "Start_24", "End_24", "Start_100", "End_100"],
    "repetition": ["Start_1+Comma_1-own", "Start_7", "End_7", "Start_22", "End_22"],
    "summation": ["Comma_2-own", "4_2-own", "Start_22", "End_22", "Start_50", "End_50"],
}
ALTERED = {  # made of latents that are tuned already
    "generation": ["Comma_4:random"],
    "repetition": [f"Start_1+Comma_1:{control}" for control in ("random", "shuffled", "removed")],
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
        raise ValueError(f"unknown control {control!r}: choose from random, shuffled, removed")
    result = LatentTokens(placement, vectors.shape[1])
    result.vectors.data.copy_(vectors[:placement.total])
    result.vectors.requires_grad_(control != "random")  # these were not trained
    return result


def open_run(folder: Path) -> tuple[Run, PretrainConfig]:
    """A run with the settings in its ``results.json``. Raises UserError if there is none."""
    try:
        config = json.loads((folder / "results.json").read_text())["config"]
        model = GPTConfig(**config["pretrain"].pop("model"))
        pretraining = PretrainConfig(**config["pretrain"], model=model)
        tuning = TuneConfig(**{name: tuple(value) if isinstance(value, list) else value
                               for name, value in config["tune"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} does not hold a run of this train.py: {error!r}") from error
    return Run(folder, pretraining, tuning), pretraining


def forgetting(task: Task) -> str:
    """What the rows are called that test other tasks after all weights were tuned on this one."""
    return f"instruction, after full on {task.name}"


def add_full(run: Run, base: GPT, task: Task, seed: int) -> None:
    """All weights tuned on one task; are the rules of the others still followed?"""
    started, method = time.perf_counter(), REFERENCES["full"]
    model, latents, record = tune_best(base, task, method, seed, run.tuning)
    rows = []
    if not run.has(task, "full", seed):
        rows += test(model, latents, task, method, seed, run.tuning)
    for other in TASKS.values():
        if other is not task:
            tested = test(model, latents, other, REFERENCES["instruction"], seed, run.tuning)
            rows += [row | {"method": forgetting(task)} for row in tested]
    run.results["tuning"].append({"task": task.name, "method": "full", "seed": seed} | record)
    run.add(rows, started)


def add_altered(run: Run, base: GPT, task: Task, name: str, seed: int) -> None:
    """Test what ``alter`` makes of tuned latents."""
    started, (notation, _, control) = time.perf_counter(), name.partition(":")
    method = Method.parse(notation)
    latents = LatentTokens.load(run.latents_path(task, method, seed), base.config.n_embd)
    latents = alter(latents, control, seed).to(base.device)
    run.add(test(base, latents, task, replace(method, control=control), seed, run.tuning), started)


def add_controls(run: Run, base: GPT, task: Task, seed: int) -> None:
    """All control rows of one task and seed that are not there yet."""
    for name in TUNED.get(task.name, []):
        if not run.has(task, name, seed):
            run.tune_and_test(base, task, Method.parse(name), seed)
    for name in ALTERED.get(task.name, []):
        if not run.has(task, name, seed):
            add_altered(run, base, task, name, seed)
    if not any(row["method"] == forgetting(task) for row in run.results["rows"]):
        add_full(run, base, task, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.controls", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/default"))
    parser.add_argument("--task", default="all", choices=[*TASKS, "all"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    try:
        run, pretraining = open_run(args.folder)
        base = pretrain(pretraining, args.folder / "base.pt", args.device)
        for task in TASKS.values() if args.task == "all" else [TASKS[args.task]]:
            for name in METHODS.get(task.name, []):
                if not run.has(task, name, 0):
                    run.tune_and_test(base, task, Method.parse(name), 0)
            add_controls(run, base, task, seed=0)
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on from what is finished\n")


if __name__ == "__main__":
    main()
