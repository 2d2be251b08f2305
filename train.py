"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           the main job
    python train.py --task all --bases 0 1    all tasks, each on two bases: seeds of pre-training
    python train.py --methods Comma_2 8_2     more placements, on the same base

A run lives in one folder, --out: bases, latents, and results.jsonl, to which each result adds a
line. What has a line there is not done again. On a busy machine set OMP_NUM_THREADS=1.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
import json
from math import isfinite, nan
import os
from pathlib import Path
from statistics import fmean
import sys
import time

import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm

from latent_tokens import (Batch, LatentTokens, Placement, UserError, generate, make_batch,
                           response_loss)
from model import GPT, GPTConfig, weights_checksum
from tasks import (ALPHABET, END, TASKS, TOKEN_ID, Example, Task, checksum, decode, draw,
                   draw_examples, encode, pretraining_batch, random_source, text_checksum)


@dataclass(frozen=True)
class PretrainConfig:
    seed: int = 0
    steps: int = 800
    short: tuple[int, int] = (8, 110)  # sequences and tokens of a batch in the first steps,
    short_until: float = 0.5  # up to this share of them
    long: tuple[int, int] = (5, 352)  # and afterwards
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part (0 ... 1) of the steps, over which the rates fall to zero
    needed_skill: float = 0.9  # nothing is tuned on a base that has less; 0: not measured
    model: GPTConfig = GPTConfig(vocab_size=len(ALPHABET))


@dataclass(frozen=True)
class TuneConfig:
    """The budget of one tuning, the same for every method, and that of its test."""
    steps: int = 300
    batch_size: int = 16  # examples per step, all of one in-distribution length
    # Pairs of learning rate and weight decay: all are tried, the best validation loss decides.
    trials: tuple = ((1.0, 0.05), (2.0, 0.05), (1.0, 0.2))
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_examples: int = 256  # of in-distribution lengths
    test_examples: int = 256  # spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20, "warmup": 5, "needed_skill": 0.0}
FAST_TUNE = {"steps": 5, "warmup": 1, "validation_examples": 20, "test_examples": 22}

# Methods without latents: nothing is said; the rule in words, once; after every comma, too.
REFERENCES = ("base", "instruction", "reminders")


# ------------------------------------------------------------------------------------- pre-training

class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` in float32: with AVX2 only, its bfloat16 takes 20 times as long."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                update = orthogonalize(matrix.grad.lerp(momentum, 0.95))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=group["lr"] * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Singular values to about 1, by five steps of Newton and Schulz (Jordan et al. 2024)."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        gram = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, gram, x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimizers(model: GPT, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and head."""
    matrices = [each for each in model.blocks.parameters() if each.ndim == 2]
    others = [each for each in model.parameters() if each not in set(matrices)]
    return [Muon(matrices, lr=config.muon_lr),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config) -> None:
    """Up to its peak over ``warmup`` steps, down towards 0 over the last part, ``decay``."""
    share = min(1.0, (step + 1) / config.warmup,
                (config.steps - step) / max(1, config.decay * config.steps))
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * share


class Unskilled(UserError):
    """A base without its skill: nothing is tuned on it. The other bases of a run go on."""


def pretrain(task: Task, config: PretrainConfig, device: str) -> GPT:
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = make_optimizers(model, config)
    rng = random_source(f"{task.name}/pretrain", config.seed)
    for step in tqdm(range(config.steps), "pre-training", leave=False, disable=None):
        read = step / config.steps  # the share of the text that has been read
        shape = config.short if read < config.short_until else config.long
        token_ids, targets = pretraining_batch(task, rng, read, *shape)  # each (B, N)
        position_ids = torch.arange(shape[1], device=device).expand(shape)
        logits = model(model.embed(token_ids.to(device)), position_ids)  # (B, N, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
        loss.backward()
        for optimizer in optimizers:
            set_learning_rate(optimizer, step, config)
            optimizer.step()
        model.zero_grad()
    return model


def skill(base: GPT, task: Task) -> float:
    """The share of exact answers, on lengths that are tuned on, with the rule in words."""
    examples = draw_examples(task, task.id_lengths, "validation", 0, 256)
    none = LatentTokens(Placement(), base.config.n_embd).to(base.device)
    texts = answers(base, none, task, task.skill_method, examples)
    return fmean(text == each.response for text, each in zip(texts, examples))


def frozen_base(task: Task, config: PretrainConfig, path: Path, device: str) -> GPT:
    """The base in a file, which is trained and written first where there is none. Raises UserError
    if it is unreadable or has other settings, Unskilled if it lacks its skill."""
    settings = asdict(config) | {"text": text_checksum(task)}
    if not path.exists():
        model = pretrain(task, config, device)
        model.save(path, settings | {"skill": skill(model, task) if config.needed_skill else 0.0})
    try:
        base = GPT.load(path)
    except ValueError as error:
        raise UserError(f"{error}: delete it, or choose a new --out") from error
    for name, asked in settings.items():
        if base.notes.get(name) != asked:
            raise UserError(f"{path} was made with {name} = {base.notes.get(name)}, not {asked}: "
                            "choose a new --out, or the same settings")
    if base.notes["skill"] < config.needed_skill:
        raise Unskilled(f"{path}: with the rule in words {base.notes['skill']:.0%} of its answers "
                        "are exact: nothing is tuned on it, take another of --bases")
    return base.to(device)


# ------------------------------------------------------------------------------- tuning and testing

def in_words(task: Task, method: str, example: Example) -> Example:
    """The example with the rule in words where a reference has it."""
    opening = task.instruction * (method in ("instruction", "reminders"))
    comma = "," + task.reminder * (method == "reminders")
    return Example(opening + example.query.replace(",", comma),
                   example.response.replace(",", comma))


def to_batch(placement: Placement, examples: list[Example], device=None) -> Batch:
    """Queries with their true responses."""
    return make_batch(placement, [encode(example.query) for example in examples],
                      [encode(example.response) for example in examples], device)


def tune(base: GPT, task: Task, placement: Placement, seed: int,
         config: TuneConfig) -> tuple[LatentTokens, list[dict]]:
    """Train latents on in-distribution lengths: those of the best trial, and what each trial gave.
    Raises UserError if no trial ends with a finite loss."""
    examples = draw_examples(task, task.id_lengths, "validation", seed, config.validation_examples)
    validation = to_batch(placement, examples, base.device)
    tuned, trials = {}, []
    for lr, weight_decay in config.trials:
        latents = LatentTokens(placement, base.config.n_embd).to(base.device)
        latents.initialize(base.token_embedding, torch.Generator().manual_seed(seed))
        optimizer = Muon(latents.parameters(), lr, weight_decay)
        rng = random_source(f"{task.name}/tune", seed)
        for step in tqdm(range(config.steps), f"tuning {placement}", leave=False, disable=None):
            length = rng.choice(task.id_lengths)
            examples = [draw(task, length, "tune", rng) for _ in range(config.batch_size)]
            loss = response_loss(base, latents, to_batch(placement, examples, base.device))
            optimizer.zero_grad()
            loss.backward()
            set_learning_rate(optimizer, step, config)
            optimizer.step()
        with torch.no_grad():
            result = response_loss(base, latents, validation).item()
        trials.append({"lr": lr, "weight_decay": weight_decay,
                       "validation_loss": result if isfinite(result) else None})
        if isfinite(result):
            tuned.setdefault(result, latents)  # the first of two with equal losses
    if not tuned:
        raise UserError(f"{task.name}, {placement}, seed {seed}: no trial has a finite loss")
    return tuned[min(tuned)], trials


def answers(base: GPT, latents: LatentTokens, task: Task, method: str,
            examples: list[Example]) -> list[str]:
    """The generated text for each example, without the reminders in it."""
    reminder = task.reminder * (method == "reminders")
    texts = []
    for start in tqdm(range(0, len(examples), 256), f"testing {method}", leave=False, disable=None):
        chunk = [in_words(task, method, each) for each in examples[start:start + 256]]
        responses = generate(base, latents, [encode(each.query) for each in chunk],
                             max(len(each.response) for each in chunk), TOKEN_ID[END],
                             encode(reminder))
        texts += [decode(token_ids[:None if END in each.response else len(each.response)])
                  .replace("," + reminder, ",") for each, token_ids in zip(chunk, responses)]
    return texts


def test(base: GPT, latents: LatentTokens, task: Task, method: str, seed: int,
         config: TuneConfig) -> dict:
    """Mean scores at each length, and the number of latents in the longest example."""
    examples = draw_examples(task, task.test_lengths, "test", seed, config.test_examples)
    scores = {}
    for example, text in zip(examples, answers(base, latents, task, method, examples)):
        for length, score in task.score(example, text).items():
            scores.setdefault(length, []).append(score)
    longest = to_batch(latents.placement, examples[-1:])
    return {"lengths": list(scores),
            "accuracy": [fmean(each.accuracy for each in scores[length]) for length in scores],
            "exact": [fmean(each.exact for each in scores[length]) for length in scores],
            "inserted": longest.sources.shape[1] - longest.token_ids.shape[1]}


# ------------------------------------------------------------------------------ the folder of a run

RESULTS = "results.jsonl"
KEY = ("task", "base", "method", "seed", "tuning", "task_checksum", "base_checksum")  # is it there?


def key(row: dict) -> tuple[str, ...]:
    return tuple(json.dumps(row[name], sort_keys=True) for name in KEY)


def read_results(path: Path) -> list[dict]:
    """The results in a file. Incomplete lines are skipped, with a message."""
    rows, skipped = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line or "{}")
            if row and key(row) and split_means(row, "accuracy") and split_means(row, "exact"):
                rows.append(row)
        except (ValueError, LookupError, TypeError, AttributeError):  # half a line, or no result
            skipped += 1
    if skipped:
        tqdm.write(f"{path}: skipped {skipped} incomplete lines")
    return rows


def append_result(path: Path, row: dict) -> None:
    """Add a line in one write, so that commands cannot mix theirs; half a line may precede it."""
    with open(path, "a", buffering=2 ** 20) as file:
        file.write(f"\n{json.dumps(row, allow_nan=False)}\n")


def split_means(row: dict, metric: str) -> dict[str, float]:
    """The mean of a result over the lengths of each split."""
    values = list(zip(row["lengths"], row[metric], strict=True))
    return {split: fmean([value for length, value in values if first <= length <= last] or [nan])
            for split, (first, last) in row["splits"].items()}


def print_table(task: Task, rows: list[dict], metrics: Sequence[str]) -> None:
    """Means over lengths, bases and seeds, a line for each method, by each metric."""
    for metric in metrics:
        print(f"\n{task.name}, {metric}".ljust(39), *(f"{each:>8}" for each in task.splits))
        for method in dict.fromkeys(row["method"] for row in rows):
            means = [split_means(row, metric) for row in rows if row["method"] == method]
            print(f"{method:38}", *(f"{fmean(each[split] for each in means):8.2f}"
                                    for split in task.splits))


# --------------------------------------------------------------------------------- the command line

def number(least: int, most: int = 10 ** 9) -> Callable[[str], int]:  # a type for argparse
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)
    return parse


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    devices = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()] + ["cpu"]
    add("--task", default="generation", choices=[*TASKS, "all"], help="default: generation")
    add("--methods", nargs="+", metavar="M", help="placements as in latent_tokens.py; default: "
        "the task's")
    add("--seeds", type=number(1), default=1, metavar="N", help="tune and test with 0 ... N-1")
    add("--steps", type=number(1), default=300, metavar="N", help="of tuning; default: 300")
    add("--bases", type=number(0), nargs="+", default=[0], metavar="N", help="seeds of a base")
    add("--device", default=devices[0], choices=devices, help=f"default: {devices[0]}")
    add("--out", type=Path, metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--fast", action="store_true", help="a try-out: ignores --steps, means nothing")
    return parser


def about(task: Task, base_seed: int, base: GPT) -> dict:
    """What all results on a base have in common."""
    return {"task": task.name, "base": base_seed, "base_checksum": weights_checksum(base),
            "task_checksum": checksum(task), "splits": task.splits, "device": str(base.device),
            "torch": torch.__version__, "threads": torch.get_num_threads()}


def complete(row: dict, base: GPT, task: Task, folder: Path, config: TuneConfig) -> dict:
    """Tune and test what a row names, and append the row to the results."""
    started, method, seed = time.perf_counter(), row["method"], row["seed"]
    latents, trials = LatentTokens(Placement(), base.config.n_embd).to(base.device), []
    if method not in REFERENCES:
        latents, trials = tune(base, task, Placement.parse(method), seed, config)
        row["latents"] = "latents/{task}-base{base}-{method}-seed{seed}.pt".format(**row)
        latents.save(folder / row["latents"])
    row |= test(base, latents, task, method, seed, config)
    row |= {"trained": latents.vectors.numel(), "vectors_checksum": weights_checksum(latents),
            "trials": trials, "seconds": round(time.perf_counter() - started, 1)}
    append_result(folder / RESULTS, row)
    means = " ".join(f"{mean:.2f}" for mean in split_means(row, task.claim.metrics[0]).values())
    print("{task}, base {base}, {method}, seed {seed}, {seconds:.0f} s:".format(**row), means)
    return row


def run(args: argparse.Namespace) -> None:
    """Pre-train and freeze each base; compare the methods on it, seed by seed."""
    tuning = replace(TuneConfig(steps=args.steps), **FAST_TUNE if args.fast else {})
    folder = args.out or Path("runs/fast" if args.fast else "runs/default")
    if folder == Path():
        raise UserError("--out: a run needs a folder of its own")
    tasks = [task for task in TASKS.values() if args.task in (task.name, "all")]
    methods = {task: [*REFERENCES, *dict.fromkeys(str(Placement.parse(name)) for name in (
        args.methods or task.claim.baselines + task.claim.proposed))] for task in tasks}
    (folder / "latents").mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).touch()
    finished = {key(row): row for row in read_results(folder / RESULTS)}
    rows, failures = [], []
    for task, base_seed in product(tasks, dict.fromkeys(args.bases)):
        config = PretrainConfig(base_seed, **FAST_PRETRAIN if args.fast else task.pretraining)
        path = folder / f"{task.name}-base{base_seed}.pt"
        try:
            base = frozen_base(task, config, path, args.device)
        except Unskilled as failure:
            failures.append(str(failure))
            continue
        shared = about(task, base_seed, base) | {"tuning": asdict(tuning)}
        for seed, method in product(range(args.seeds), methods[task]):
            row = shared | {"method": method, "seed": seed}
            rows.append(finished.get(key(row)) or complete(row, base, task, folder, tuning))
    for name in dict.fromkeys(row["task"] for row in rows):
        metrics = ("accuracy", "exact") if args.fast else TASKS[name].claim.metrics
        print_table(TASKS[name], [row for row in rows if row["task"] == name], metrics)
    print(f"\nwrote {folder / RESULTS}" + "; with --fast the numbers mean nothing" * args.fast)
    if failures:
        raise UserError("; ".join(failures))


def command(work: Callable, parser: argparse.ArgumentParser, arguments: list[str] | None) -> None:
    """Parse and work. A mistake or Ctrl-C ends with one line and no traceback."""
    try:
        work(parser.parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as in ``| head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(1)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # raised by somebody's own code
            raise
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; what is finished is kept\n")


def main(arguments: list[str] | None = None) -> None:
    command(run, make_parser(), arguments)


if __name__ == "__main__":
    main()
