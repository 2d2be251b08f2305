"""Control rows for a run of train.py: are placement and learned vectors what matters?

    python -m extras.controls runs/default --task generation

They use the run's base and tuned latents, and their rows go into its ``results.json``:

    Comma_4-own          latents with positions of their own
    Start_100            as many latents at the start as Comma_4 inserts at the longest length
    full                 all weights tuned; and what that does to the other tasks, told in words
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

from latent_tokens import LatentTokens, Placement, UserError
from model import GPT, GPTConfig
from tasks import TASKS, Task
from train import METHODS, REFERENCES, Method, PretrainConfig, Run, TuneConfig, pretrain, test

TUNED = {  # tuned anew; the numbers are those of the latents that the proposed method inserts
    "generation": ["Comma_4-own", "Start_24", "End_24", "Start_100", "End_100", "full"],
    "repetition": ["Start_1+Comma_1-own", "Start_7", "End_7", "Start_22", "End_22", "full"],
    "summation": ["Comma_2-own", "4_2-own", "Start_22", "End_22", "Start_50", "End_50", "full"],
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
    else:
        generator = torch.Generator().manual_seed(seed + 1_000_000)  # not the one of initial values
        noise = torch.randn(vectors.shape, generator=generator)
        vectors = F.normalize(noise, dim=1) * vectors.norm(dim=1, keepdim=True)
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no results of this train.py: {error}") from error
    return Run(folder, pretraining, tuning), pretraining


def add_tuned(run: Run, base: GPT, task: Task, method: Method, seed: int) -> None:
    """Tune and test; after ``full`` also test whether the other tasks' rules are still followed."""
    model = run.tune_and_test(base, task, method, seed)
    for other in TASKS.values():
        if method.full and other is not task:
            started = time.perf_counter()
            rows = test(model, LatentTokens(Placement(), base.config.n_embd).to(base.device), other,
                        REFERENCES["instruction"], seed, run.tuning)
            name = f"instruction, after full on {task.name}"
            run.add([row | {"method": name} for row in rows], started)


def add_altered(run: Run, base: GPT, task: Task, name: str, seed: int) -> None:
    """Test what ``alter`` makes of tuned latents."""
    started, (notation, _, control) = time.perf_counter(), name.partition(":")
    method = Method.parse(notation)
    latents = LatentTokens.load(run.latents_path(task, method, seed), base.config.n_embd)
    latents = alter(latents, control, seed).to(base.device)
    run.add(test(base, latents, task, replace(method, control=control), seed, run.tuning), started)


def add_controls(run: Run, base: GPT, task: Task, seed: int) -> None:
    """All control rows of one task and seed that are not there yet."""
    for name in TUNED[task.name]:
        if not run.has(task, name, seed):
            add_tuned(run, base, task, Method.parse(name), seed)
    for name in ALTERED[task.name]:
        if not run.has(task, name, seed):
            add_altered(run, base, task, name, seed)


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
            for name in METHODS[task.name]:
                if not run.has(task, name, 0):
                    run.tune_and_test(base, task, Method.parse(name), 0)
            add_controls(run, base, task, seed=0)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
