"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           some eleven minutes on two CPU cores
    python train.py --fast                    the same in under a minute; its numbers mean nothing
    python train.py --methods Comma_2 8_2     two more rows for the table, on the same base

A run lives in one folder (--out) and stands for one set of settings. What it has finished (steps of
pre-training, methods tuned and tested) stays there and is reused by the next command with the same
--out, so a run that was stopped goes on where it stood.
"""

import argparse
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
import json
from math import inf, isnan
import os
from pathlib import Path
import platform
from statistics import fmean, stdev
import time

import torch
from tqdm import tqdm

from latent_tokens import (LatentTokens, Placement, VerbalBatch, count_latents, generate,
                           response_loss)
from model import GPT, GPTConfig, PretrainConfig, pretrain, refuse_difference, schedule
from tasks import (END, TASKS, TOKEN_ID, Example, check_length, decode, draw, encode, examples,
                   pretraining_batches, random_source, show)

REFERENCES = ("base", "instruction")  # nothing said; the rule said in words before the query
NO_LATENTS = Placement(())


@dataclass(frozen=True)
class TuneConfig:
    steps: int = 400
    rows: int = 32  # examples per step, of in-distribution lengths
    lrs: tuple[float, ...] = (1.0, 2.0)  # each tuning takes the one with the best validation loss
    weight_decay: float = 0.05  # keeps latents about as long as embeddings; long ones fail far OOD
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_rows: int = 256  # examples, of in-distribution lengths
    test_rows: int = 512  # examples, spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20, "warmup": 5}
FAST_TUNE = {"steps": 5, "warmup": 1, "validation_rows": 20, "test_rows": 22}


# ------------------------------------------------------------------------------------------ tuning

def to_batch(rows: list[Example], device) -> VerbalBatch:
    return VerbalBatch.collate([encode(row.query) for row in rows],
                               [encode(row.response) for row in rows], device)


def tune(model: GPT, task, placement: Placement, lr: float, seed: int,
         config: TuneConfig) -> LatentTokens:
    """Latents of ``placement``, trained on in-distribution lengths; ``model`` stays frozen."""
    latents = LatentTokens(placement, model.config.width)
    latents.initialise(model.token_embedding.cpu(), torch.Generator().manual_seed(seed))
    latents.to(model.head.weight.device)
    optimizer = torch.optim.Muon(latents.parameters(), lr=lr,
                                 weight_decay=config.weight_decay)
    rates = schedule(optimizer, config)
    rng = random_source(f"{task.name}/tune", seed)
    bar = tqdm(range(config.steps), desc=f"tuning {placement}, seed {seed}, lr {lr:g}", leave=False)
    for _ in bar:
        rows = [draw(task, rng.choice(task.id_lengths), "tune", rng) for _ in range(config.rows)]
        loss = response_loss(model, latents, to_batch(rows, latents.vectors.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return latents


def tune_best(model: GPT, task, placement: Placement, seed: int,
              config: TuneConfig) -> tuple[LatentTokens, dict]:
    """Tune once per learning rate and keep the best by validation loss; also what each gave."""
    rows = examples(task, task.id_lengths, "validation", seed,
                    max(1, config.validation_rows // len(task.id_lengths)))
    batch = to_batch(rows, model.head.weight.device)
    tuned, losses = {}, {}
    for lr in config.lrs:
        tuned[lr] = tune(model, task, placement, lr, seed, config)
        with torch.no_grad():
            losses[lr] = response_loss(model, tuned[lr], batch).item()
    best = min(losses, key=lambda lr: (isnan(losses[lr]), losses[lr]))
    return tuned[best], {"lr": best, "validation_loss": losses}


# -------------------------------------------------------------------------------------- evaluation

def answers(model: GPT, latents: LatentTokens, rows: list[Example], method: str) -> list[str]:
    """The generated text for each example; "instruction" has the rule said before the query."""
    texts = []
    for start in tqdm(range(0, len(rows), 128), desc=f"testing {method}", leave=False):
        chunk = rows[start:start + 128]
        queries = [encode(row.instruction * (method == "instruction") + row.query) for row in chunk]
        longest = max(len(row.response) for row in chunk)
        texts += map(decode, generate(model, latents, queries, longest, TOKEN_ID[END]))
    return texts


def evaluate(model: GPT, latents: LatentTokens, task, method: str, seed: int, lengths,
             test_rows: int) -> list[dict]:
    """The rows of ``results.json`` for one method and seed, one per length."""
    rows = examples(task, lengths, "test", seed, max(1, test_rows // len(lengths)))
    scores = defaultdict(list)
    for row, text in zip(rows, answers(model, latents, rows, method)):
        for length, score in task.score(row, text).items():
            scores[length].append(score)
    return [{
        "task": task.name, "method": method, "seed": seed, "length": length,
        "split": "id" if length in task.id_lengths else "ood",
        "accuracy": fmean(score.accuracy for score in scores[length]),
        "exact": fmean(score.exact for score in scores[length]),
        "latents_inserted": latents_inserted(task, latents.placement, length),
        "trainable_parameters": latents.vectors.numel(),
    } for length in scores]


def latents_inserted(task, placement: Placement, length: int) -> int:
    """How many in all, at a length; the layout of an example depends on nothing else."""
    row = task.example(random_source("layout", 0), length)
    return count_latents(placement, encode(row.query), encode(row.response))


def table(rows: list[dict]) -> str:
    """The results of one task in Markdown; a cell is the mean over the lengths of its split."""
    task = TASKS[rows[0]["task"]]
    lengths = sorted({row["length"] for row in rows})
    splits = {"ID": task.id_lengths, "OOD": task.ood_lengths, "far OOD": task.far_lengths}
    cells = [(metric, name, split) for metric in ("accuracy", "exact")
             for name, split in splits.items() if set(split) & set(lengths)]
    heads = [f"{metric} {name} {split[0]}-{split[-1]}" for metric, name, split in cells]
    lines = [f"| {task.name} | trained | inserted at {lengths[-1]} | " + " | ".join(heads) + " |",
             "|---" * (3 + len(heads)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        means = [mean_and_sd(mine, metric, split) for metric, _, split in cells]
        inserted = max(row["latents_inserted"] for row in mine)
        lines.append(f"| `{method}` | {mine[0]['trainable_parameters']} | {inserted} | "
                     + " | ".join(means) + " |")
    return "\n".join(lines)


def mean_and_sd(rows: list[dict], metric: str, lengths) -> str:
    """``0.93 ± 0.02``: the mean over lengths of each seed, then mean and sd over the seeds."""
    by_seed = defaultdict(list)
    for row in rows:
        if row["length"] in lengths:
            by_seed[row["seed"]].append(row[metric])
    means = [fmean(values) for values in by_seed.values()]
    return f"{fmean(means):.2f}" + (f" ± {stdev(means):.2f}" if len(means) > 1 else "")


# ----------------------------------------------------------------------------------------- the run

def read_results(path: Path, config: dict) -> dict:
    """What an earlier command left. Raises ValueError if it is damaged or of other settings."""
    try:
        found = json.loads(path.read_text())
        refuse_difference(path, found["config"], config)
        return {part: found[part] for part in ("config", "environment", "tuning", "rows")}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable file of results: delete it or choose another "
                         "--out") from error


class Run:
    """One folder: ``config.json``, ``base.pt``, ``latents/`` and ``results.json``.

    Raises ValueError if it holds a run with other settings, OSError if it cannot be written.
    """

    def __init__(self, folder: Path, pretraining: PretrainConfig, tuning: TuneConfig,
                 lengths: list[int] | None, device: str):
        self.folder, self.tuning, self.lengths, self.device = folder, tuning, lengths, device
        config = {"pretrain": asdict(pretraining), "tune": asdict(tuning), "lengths": lengths}
        self.results = {"config": json.loads(json.dumps(config)), "environment": {
            "torch": torch.__version__, "device": device, "machine": platform.machine(),
            "threads": torch.get_num_threads(), "seconds": {}}, "tuning": [], "rows": []}
        (folder / "latents").mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"--out {folder} cannot be written")
        if (folder / "results.json").exists():
            self.results = read_results(folder / "results.json", self.results["config"])
        started = time.perf_counter()
        text = pretraining_batches(pretraining.shares, random_source("pretrain", pretraining.seed),
                                   pretraining.rows, pretraining.model.context)
        self.model = pretrain(pretraining, text, folder / "base.pt", device)
        self.done("pre-training", started)

    def save(self) -> None:
        for name, content in (("config", self.results["config"]), ("results", self.results)):
            partial = self.folder / f"{name}.json.partial"
            partial.write_text(json.dumps(content, indent=1))
            os.replace(partial, self.folder / f"{name}.json")

    def done(self, stage: str, started: float) -> None:
        """Save, and print what the stage took in the command that finished it."""
        seconds = self.results["environment"]["seconds"]
        earlier = stage in seconds
        seconds.setdefault(stage, round(time.perf_counter() - started, 1))
        self.save()
        print(f"{stage}: {seconds[stage]:.0f} s" + (", earlier; reused" if earlier else ""))

    def latents_file(self, task, method: str, seed: int) -> Path:
        return self.folder / "latents" / f"{task.name}-{method}-seed{seed}.pt"

    def tune_and_test(self, task, method: str, seed: int) -> None:
        """One method with one seed, unless that is done; references are not tuned."""
        started = time.perf_counter()
        if not any((row["task"], row["method"], row["seed"]) == (task.name, method, seed)
                   for row in self.results["rows"]):
            if method in REFERENCES:
                latents = LatentTokens(NO_LATENTS, self.model.config.width).to(self.device)
            else:
                latents, chosen = tune_best(self.model, task, Placement.parse(method), seed,
                                            self.tuning)
                latents.save(self.latents_file(task, method, seed))
                self.results["tuning"].append(
                    {"task": task.name, "method": method, "seed": seed} | chosen)
            self.results["rows"] += evaluate(self.model, latents, task, method, seed,
                                             self.lengths or task.test_lengths,
                                             self.tuning.test_rows)
        self.done(f"{task.name}, {method}, seed {seed}", started)

    def report(self, task, methods: list[str]) -> None:
        """Print the table of a task and, in full, three answers to the first test examples."""
        print("\n" + table([row for row in self.results["rows"] if row["task"] == task.name]))
        length = max(self.lengths or task.test_lengths)
        rows = examples(task, [length], "test", 0, 3)
        for method, row in [(method, row) for row in rows for method in methods][:3]:
            latents = LatentTokens.load(self.latents_file(task, method, 0), self.model.config.width)
            text, = answers(self.model, latents.to(self.device), [row], method)
            print(f"\n{method} on {row.query}", show(row, text))


# -------------------------------------------------------------------------------- the command line

class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, and exit code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def make_parser() -> Parser:
    parser = Parser(prog="train.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="generation", choices=[*TASKS, "all"], help="default: generation")
    add("--methods", nargs="+", metavar="M", default=["Start_4", "End_4", "Comma_4"],
        help="Start_m, End_m, Comma_m, k_m (m latents after every k tokens), or sums such as "
             "Start_1+Comma_1; default: Start_4 End_4 Comma_4")
    add("--own-positions", action="store_true",
        help="switch position sharing off; -own behind a method's name does it for that one")
    add("--seeds", type=int, default=1, metavar="N",
        help="tune and test with the seeds 0 ... N-1; default: 1")
    add("--steps", type=int, metavar="N", help=f"steps of tuning; default: {TuneConfig.steps}")
    add("--lr", type=float, nargs="+", metavar="X",
        help="learning rates of tuning, the best by validation loss is kept; default: 1.0 2.0")
    add("--pretrain-steps", type=int, metavar="N",
        help=f"steps of pre-training; default: {PretrainConfig.steps}")
    add("--pretrain-seed", type=int, metavar="N", help="seed of the base; default: 0")
    add("--lengths", type=int, nargs="+", metavar="N",
        help="lengths of the test examples; default: those of the task")
    add("--device", default="auto", help="cpu, cuda, mps or auto, the default")
    add("--out", type=Path, metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--fast", action="store_true",
        help="a real run of everything in under a minute; its numbers mean nothing")
    return parser


def choose_device(name: str) -> str:
    """Raises ValueError if the device is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    valid = [device for device in there if there[device]]
    if name not in ("auto", *valid):
        raise ValueError(f"--device {name} is not available here; choose from: auto, "
                         + ", ".join(valid))
    return valid[0] if name == "auto" else name


def check(args: argparse.Namespace) -> None:
    """Resolve and check all arguments before anything is computed. Raises ValueError."""
    for name in ("seeds", "steps", "pretrain_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more")
    if not all(0 < lr < inf for lr in args.lr or ()):
        raise ValueError("--lr must be above 0")
    placements = [Placement.parse(name) for name in args.methods]
    if args.own_positions:
        placements = [replace(placement, share_positions=False) for placement in placements]
    args.methods = list(dict.fromkeys(map(str, placements)))
    args.lengths = sorted(set(args.lengths)) if args.lengths else None
    args.tasks = list(TASKS.values()) if args.task == "all" else [TASKS[args.task]]
    for task in args.tasks:
        for length in args.lengths or task.test_lengths:
            check_length(task, length, GPTConfig.context)
    args.device = choose_device(args.device)
    args.out = args.out or Path("runs/fast" if args.fast else "runs/default")


def configure(kind: type, tiny: dict, **given):
    """A configuration: its defaults, the tiny ones of --fast over them, and what was given."""
    return kind(**tiny | {name: value for name, value in given.items() if value is not None})


def run(args: argparse.Namespace) -> None:
    """Pre-train, then every task, seed and method, then the reports."""
    pretraining = configure(PretrainConfig, FAST_PRETRAIN if args.fast else {},
                            steps=args.pretrain_steps, seed=args.pretrain_seed)
    tuning = configure(TuneConfig, FAST_TUNE if args.fast else {},
                       steps=args.steps, lrs=args.lr and tuple(sorted(set(args.lr))))
    work = Run(args.out, pretraining, tuning, args.lengths, args.device)
    base = sum(each.numel() for each in work.model.parameters())
    latents = (f"{name} {Placement.parse(name).total * work.model.config.width:,}"
               for name in args.methods)
    print(f"parameters: base {base:,}, frozen; latents, trained: {', '.join(latents)}")
    for task in args.tasks:
        for seed in range(args.seeds):
            for method in (*REFERENCES, *args.methods):
                work.tune_and_test(task, method, seed)
    for task in args.tasks:
        work.report(task, args.methods)
    print(f"\nwrote {args.out / 'results.json'}"
          + ("; with --fast the numbers mean nothing" if args.fast else ""))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        check(args)
        run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; the same command goes on from what is in {args.out}\n")


if __name__ == "__main__":
    main()
