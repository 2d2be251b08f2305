"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           some eleven minutes on two CPU cores
    python train.py --task all --seeds 5      the README's main tables
    python train.py --task all --controls     also the control rows, on the same base
    python train.py --methods Comma_2 8_2     two more rows for the table
    python train.py --table                   the tables of what is finished, as Markdown
    python train.py --fast                    a real run in under a minute; its numbers mean nothing

A run lives in one folder (--out) and stands for one set of settings. What it has finished (steps of
pre-training, methods tuned and tested) stays there and is reused by the next command with the same
--out, so a run that was stopped goes on where it stood.
"""

import argparse
from collections import defaultdict
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
import json
from math import inf, isnan
import os
from pathlib import Path
import platform
from statistics import fmean, stdev
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from latent_tokens import (LatentTokens, Placement, VerbalBatch, count_latents, generate,
                           response_loss)
from model import GPT, GPTConfig, PretrainConfig, pretrain, refuse_difference, schedule
from tasks import (END, TASKS, TOKEN_ID, Example, check_length, decode, draw, encode, examples,
                   pretraining_batches, random_source, show)

REFERENCES = {  # in place of latents: the rule in words, before the query and after every comma?
    "base": (False, False),
    "instruction": (True, False),
    "reminders": (True, True),  # Start_m+Comma_m in words
}
FULL = "full"  # in place of latents: all weights tuned
CONTROLS = {  # of tuned latents, written after their placement, as in Comma_4:random
    "random": "untrained vectors of the same lengths",
    "shuffled": "every vector in the place of the next",
    "removed": "the last group left out",
}
NO_LATENTS = Placement(())
# Student's t for 95 % and 2, 3, ... 10 seeds; the last one is wide enough for more.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class TuneConfig:
    """The budget of one tuning, the same for every method."""

    steps: int = 400
    rows: int = 32  # examples per step, of in-distribution lengths
    lrs: tuple[float, ...] = (1.0, 2.0)  # each tuning takes the one with the best validation loss
    full_lrs: tuple[float, ...] = (1e-4, 1e-3)  # the same for all weights ("full")
    weight_decay: float = 0.05  # keeps latents about as long as embeddings; long ones fail far OOD
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_rows: int = 256  # examples, of in-distribution lengths
    test_rows: int = 512  # examples, spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20, "warmup": 5}
FAST_TUNE = {"steps": 5, "warmup": 1, "validation_rows": 20, "test_rows": 22}


# ------------------------------------------------------------------------------------------ tuning

def to_batch(rows: list[Example], device) -> VerbalBatch:
    """Queries with their true responses, for the loss."""
    return VerbalBatch.collate([encode(row.query) for row in rows],
                               [encode(row.response) for row in rows], device)


def start_of_tuning(base: GPT, method: str, lr: float, seed: int, config: TuneConfig
                    ) -> tuple[GPT, LatentTokens, torch.optim.Optimizer]:
    """Model and latents before tuning, and the optimiser of one or the other."""
    width, device = base.config.width, base.head.weight.device
    if method == FULL:
        model = deepcopy(base).requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        return model, LatentTokens(NO_LATENTS, width).to(device), optimizer
    latents = LatentTokens(Placement.parse(method), width)
    latents.initialise(base.token_embedding.cpu(), torch.Generator().manual_seed(seed))
    latents.to(device)
    optimizer = torch.optim.Muon(latents.parameters(), lr=lr, weight_decay=config.weight_decay)
    return base, latents, optimizer


def tune(base: GPT, task, method: str, lr: float, seed: int,
         config: TuneConfig) -> tuple[GPT, LatentTokens]:
    """Train latents, or a copy of all weights, on in-distribution lengths; ``base`` stays."""
    model, latents, optimizer = start_of_tuning(base, method, lr, seed, config)
    rates = schedule(optimizer, config)
    rng = random_source(f"{task.name}/tune", seed)
    bar = tqdm(range(config.steps), desc=f"tuning {method}, seed {seed}, lr {lr:g}", leave=False)
    for _ in bar:
        rows = [draw(task, rng.choice(task.id_lengths), "tune", rng) for _ in range(config.rows)]
        loss = response_loss(model, latents, to_batch(rows, latents.vectors.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model, latents


def tune_best(base: GPT, task, method: str, seed: int,
              config: TuneConfig) -> tuple[GPT, LatentTokens, dict]:
    """Tune once per learning rate and keep the best by validation loss; also what each gave."""
    rows = examples(task, task.id_lengths, "validation", seed,
                    max(1, config.validation_rows // len(task.id_lengths)))
    batch = to_batch(rows, base.head.weight.device)
    tuned, losses = {}, {}
    for lr in config.full_lrs if method == FULL else config.lrs:
        tuned[lr] = tune(base, task, method, lr, seed, config)
        with torch.no_grad():
            losses[lr] = response_loss(*tuned[lr], batch).item()
    best = min(losses, key=lambda lr: (isnan(losses[lr]), losses[lr]))
    return *tuned[best], {"lr": best, "validation_loss": losses}


def altered(latents: LatentTokens, control: str, seed: int) -> LatentTokens:
    """One of CONTROLS, made of tuned latents: are the learned vectors what matters?"""
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
    result.vectors.requires_grad_(control != "random")  # for the column "trained"
    return result


# -------------------------------------------------------------------------------------- evaluation

def answers(model: GPT, latents: LatentTokens, rows: list[Example], method: str) -> list[str]:
    """The generated text for each example, without the reminders in it."""
    told, reminded = REFERENCES.get(method, (False, False))
    instruction = rows[0].instruction  # all are of one task
    said, reminder = instruction * told, instruction * reminded
    texts = []
    for start in tqdm(range(0, len(rows), 128), desc=f"testing {method}", leave=False):
        chunk = rows[start:start + 128]
        queries = [encode(said + row.query.replace(",", "," + reminder)) for row in chunk]
        longest = max(len(row.response.replace(",", "," + reminder)) for row in chunk)
        written = generate(model, latents, queries, longest, TOKEN_ID[END], encode(reminder))
        texts += [decode(token_ids).replace("," + reminder, ",") for token_ids in written]
    return texts


def evaluate(model: GPT, latents: LatentTokens, task, method: str, seed: int, lengths,
             test_rows: int) -> list[dict]:
    """The rows of ``results.json`` for one method and seed, one per length."""
    rows = examples(task, lengths, "test", seed, max(1, test_rows // len(lengths)))
    scores = defaultdict(list)
    for row, text in zip(rows, answers(model, latents, rows, method)):
        for length, score in task.score(row, text).items():
            scores[length].append(score)
    trained = sum(each.numel() for each in (*model.parameters(), *latents.parameters())
                  if each.requires_grad)
    return [{
        "task": task.name, "method": method, "seed": seed, "length": length,
        "split": ("id" if length in task.id_lengths else
                  "ood" if length in task.ood_lengths else "other"),
        "accuracy": fmean(score.accuracy for score in scores[length]),
        "exact": fmean(score.exact for score in scores[length]),
        "latents_inserted": latents_inserted(task, latents.placement, length),
        "trainable_parameters": trained,
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
    tested = {name: [n for n in lengths if n in split] for name, split in splits.items()}
    cells = [(metric, name, tested[name]) for metric in task.metrics
             for name in splits if tested[name]]
    heads = [f"{metric} {name} {span(split)}" for metric, name, split in cells]
    lines = [f"| {task.name} | seeds | trained | inserted at {lengths[-1]} | "
             + " | ".join(heads) + " |", "|---" * (4 + len(heads)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        means = [by_seed(mine, metric, split) for metric, _, split in cells]
        inserted = max(row["latents_inserted"] for row in mine)
        seeds = len({row["seed"] for row in mine})
        lines.append(f"| `{method}` | {seeds} | {mine[0]['trainable_parameters']} | "
                     f"{inserted} | " + " | ".join(map(mean_and_sd, means)) + " |")
    return "\n".join(lines)


def span(lengths: list[int]) -> str:
    """``6-24``, or ``6`` if that is all."""
    return "-".join(str(length) for length in sorted({lengths[0], lengths[-1]}))


def by_seed(rows: list[dict], metric: str, lengths) -> dict[int, float]:
    """Each seed's mean over the lengths."""
    values = defaultdict(list)
    for row in rows:
        if row["length"] in lengths:
            values[row["seed"]].append(row[metric])
    return {seed: fmean(values[seed]) for seed in values}


def mean_and_sd(means: dict[int, float]) -> str:
    """``0.93 ± 0.02``, over the seeds; nothing if no such length was tested."""
    if not means:
        return ""
    sd = f" ± {stdev(means.values()):.2f}" if len(means) > 1 else ""
    return f"{fmean(means.values()):.2f}{sd}"


def differences(rows: list[dict]) -> str:
    """The claim of a task in Markdown: methods against baselines on the same seeds.

    Every seed tunes anew and draws its own test rows (in Repetition from the same few queries), the
    same for all methods; so an interval over the seeds' differences (Student's t) covers both. It
    does not cover other bases, and is not corrected for the number of differences.
    """
    task = TASKS[rows[0]["task"]]
    metric, name, lengths = task.claim
    lengths = sorted({row["length"] for row in rows} & set(lengths))
    if not lengths:
        return ""
    values = {method: by_seed([row for row in rows if row["method"] == method], metric, lengths)
              for method in task.methods}
    lines = [f"| {name} {span(lengths)} | difference | 95 % interval | relative |",
             "|---|---|---|---|"]
    for ours, theirs in product(task.claimed, task.baselines):
        seeds = values[ours].keys() & values[theirs].keys()
        pairs = [values[ours][seed] - values[theirs][seed] for seed in seeds]
        if len(pairs) > 1:
            mean, baseline = fmean(pairs), fmean(values[theirs][seed] for seed in seeds)
            half = STUDENT[min(len(pairs), 10) - 2] * stdev(pairs) / len(pairs) ** 0.5
            relative = f"{mean / baseline:+.0%}" if baseline else "from zero"
            lines.append(f"| `{ours}` - `{theirs}` | {mean:+.2f} | {mean - half:+.2f} to "
                         f"{mean + half:+.2f} | {relative} |")
    return "\n".join(lines) if lines[2:] else ""


# ----------------------------------------------------------------------------------------- the run

def read_results(path: Path) -> dict:
    """What an earlier command left. Raises ValueError if it is damaged, OSError if not there."""
    try:
        found = json.loads(path.read_text())
        return {part: found[part] for part in ("config", "environment", "tuning", "rows")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable file of results: delete it or choose another "
                         "--out") from error


def print_tables(results: dict) -> None:
    """All that is finished, a table for each task, as Markdown."""
    for task in TASKS:
        rows = [row for row in results["rows"] if row["task"] == task]
        if rows:
            print(f"\n{table(rows)}\n\n{differences(rows)}".rstrip())


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
            found = read_results(folder / "results.json")
            refuse_difference(folder / "results.json", found["config"], self.results["config"])
            self.results = found
        started = time.perf_counter()
        text = pretraining_batches(pretraining.shares, random_source("pretrain", pretraining.seed),
                                   pretraining.rows, pretraining.model.context)
        self.model = pretrain(pretraining, text, folder / "base.pt", device)
        self.done("pre-training", started)

    def save(self) -> None:
        """Write both JSON files, each by way of a neighbour."""
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

    def load_latents(self, task, method: str, seed: int) -> LatentTokens:
        """What an earlier tuning of this run saved."""
        return LatentTokens.load(self.latents_file(task, method, seed), self.model.config.width)

    def tune_and_test(self, task, method: str, seed: int) -> None:
        """One method with one seed, unless that is done."""
        started = time.perf_counter()
        if not any((row["task"], row["method"], row["seed"]) == (task.name, method, seed)
                   for row in self.results["rows"]):
            model, latents = self.prepare(task, method, seed)
            self.results["rows"] += evaluate(model, latents, task, method, seed,
                                             self.lengths or task.test_lengths,
                                             self.tuning.test_rows)
            if method == FULL:  # has the model kept its other skills?
                for other in TASKS.values():
                    if other is not task:
                        rows = evaluate(model, latents, other, "instruction", seed,
                                        other.test_lengths, self.tuning.test_rows)
                        name = f"instruction, after full on {task.name}"
                        self.results["rows"] += [row | {"method": name} for row in rows]
        self.done(f"{task.name}, {method}, seed {seed}", started)

    def prepare(self, task, method: str, seed: int) -> tuple[GPT, LatentTokens]:
        """The model and the latents that a method is tested with, tuned here where it has to be."""
        placement, _, control = method.partition(":")
        if control:
            self.tune_and_test(task, placement, seed)
            latents = altered(self.load_latents(task, placement, seed), control, seed)
            return self.model, latents.to(self.device)
        if method in REFERENCES:
            return self.model, LatentTokens(NO_LATENTS, self.model.config.width).to(self.device)
        model, latents, chosen = tune_best(self.model, task, method, seed, self.tuning)
        self.results["tuning"].append({"task": task.name, "method": method, "seed": seed} | chosen)
        if method != FULL:
            latents.save(self.latents_file(task, method, seed))
        return model, latents

    def report(self, task, methods: list[str]) -> None:
        """Print, in full, three answers to the first test examples."""
        length = max(self.lengths or task.test_lengths)
        rows = examples(task, [length], "test", 0, 3)
        tuned = [method for method in methods if self.latents_file(task, method, 0).exists()]
        for method, row in [(method, row) for row in rows for method in tuned[-3:]][:3]:
            latents = self.load_latents(task, method, 0).to(self.device)
            text, = answers(self.model, latents, [row], method)
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
    add("--methods", nargs="+", metavar="M",
        help="Start_m, End_m, Comma_m, k_m (m latents after every k tokens), or sums such as "
             "Start_1+Comma_1; one of these with a control of its latents after it, as in "
             f"Comma_4:random ({', '.join(CONTROLS)}); full; default: those of the task")
    add("--controls", action="store_true", help="also the controls of the task")
    add("--own-positions", action="store_true",
        help="switch position sharing off; -own after a method's name does it for that one")
    add("--seeds", type=int, default=1, metavar="N",
        help="tune and test with the seeds 0 ... N-1; default: 1")
    add("--steps", type=int, metavar="N", help=f"steps of tuning; default: {TuneConfig.steps}")
    add("--lr", type=float, nargs="+", metavar="X",
        help="learning rates of latents, the best by validation loss is kept; default: 1.0 2.0")
    add("--pretrain-steps", type=int, metavar="N",
        help=f"steps of pre-training; default: {PretrainConfig.steps}")
    add("--pretrain-seed", type=int, metavar="N", help="seed of the base; default: 0")
    add("--lengths", type=int, nargs="+", metavar="N",
        help="lengths of the test examples; default: those of the task")
    devices = [device for device, there in (("cuda", torch.cuda.is_available()),
                                            ("mps", torch.backends.mps.is_available()),
                                            ("cpu", True)) if there]
    add("--device", default=devices[0], choices=devices, help=f"default: {devices[0]}")
    add("--out", type=Path, metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--table", action="store_true",
        help="print the tables of what is finished in --out, as Markdown, and do nothing else")
    add("--fast", action="store_true",
        help="a real run of everything in under a minute; its numbers mean nothing")
    return parser


def canonical(method: str, own_positions: bool) -> str:
    """A method's one name. Raises ValueError on an unknown one."""
    if method in (*REFERENCES, FULL):
        return method
    notation, colon, control = method.partition(":")
    if colon and control not in CONTROLS:
        raise ValueError(f"unknown control {control!r} of {notation}: choose from "
                         + ", ".join(CONTROLS))
    placement = Placement.parse(notation)
    if own_positions:
        placement = replace(placement, share_positions=False)
    return f"{placement}{colon}{control}"


def methods_of(task, args: argparse.Namespace) -> list[str]:
    """What is asked for of a task, each method once, after the references."""
    methods = [*(args.methods or task.methods), *(task.controls if args.controls else ())]
    named = [canonical(method, args.own_positions) for method in methods]
    return list(dict.fromkeys([*REFERENCES, *named]))


def check(args: argparse.Namespace) -> None:
    """Resolve and check all arguments before anything is computed. Raises ValueError."""
    for name in ("seeds", "steps", "pretrain_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more")
    if not all(0 < lr < inf for lr in args.lr or ()):
        raise ValueError("--lr must be above 0")
    args.lengths = sorted(set(args.lengths)) if args.lengths else None
    args.tasks = list(TASKS.values()) if args.task == "all" else [TASKS[args.task]]
    args.methods = {task.name: methods_of(task, args) for task in args.tasks}
    for task in args.tasks:
        for length in args.lengths or task.test_lengths:
            check_length(task, length, GPTConfig.context)
            for method in args.methods[task.name]:
                check_positions(task, method, length)
    args.out = args.out or Path("runs/fast" if args.fast else "runs/default")


def check_positions(task, method: str, length: int) -> None:
    """Raises ValueError if latents with positions of their own overflow the context."""
    is_placement = method not in (*REFERENCES, FULL)
    placement = Placement.parse(method.partition(":")[0]) if is_placement else NO_LATENTS
    if placement.share_positions:
        return
    row = task.example(random_source("layout", 0), length)
    needed = len(row.query + row.response) + latents_inserted(task, placement, length)
    if needed > GPTConfig.context:
        raise ValueError(f"{method} needs {needed} positions at length {length} of {task.name}, "
                         f"the model's context has {GPTConfig.context}: choose fewer latents or "
                         "shorter --lengths")


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
    print(f"parameters of the base, frozen: {sum(p.numel() for p in work.model.parameters()):,}")
    for task in args.tasks:
        for seed in range(args.seeds):
            for method in args.methods[task.name]:
                work.tune_and_test(task, method, seed)
    print_tables(work.results)
    for task in args.tasks:
        work.report(task, args.methods[task.name])
    print(f"\nwrote {args.out / 'results.json'}"
          + ("; with --fast the numbers mean nothing" if args.fast else ""))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        check(args)
        if args.table:
            print_tables(read_results(args.out / "results.json"))
        else:
            run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; the same command goes on from what is in {args.out}\n")


if __name__ == "__main__":
    main()
