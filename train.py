"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           about ten minutes on two CPU cores
    python train.py --fast                    the same in under a minute; its numbers mean nothing
    python train.py --methods Comma_2 8_2     two more methods on the same base

A run lives in one folder (--out) and stands for one configuration. Whatever it has finished - the
base, latents, rows of the table - is kept there and reused by the next run with the same --out, so
an interrupted run goes on where it stopped.
"""

import argparse
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
import json
import os
from pathlib import Path
import pickle
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from latent_tokens import (LatentTokens, Placement, VerbalBatch, count_latents, generate,
                           response_loss, save_atomically)
from model import GPT, GPTConfig
from tasks import (ALPHABET, END, TASKS, TOKEN_ID, Example, check_length, decode, encode, examples,
                   pretraining_batches, random_source)

REFERENCES = ("base", "instruction")  # nothing said; the rule said in words before the query
NO_LATENTS = Placement(())


# ----------------------------------------------------------------------------------- configuration

@dataclass
class PretrainConfig:
    steps: int = 900
    rows: int = 32  # blocks per step
    shares: dict[str, float] = field(  # of the characters of the pre-training text
        default_factory=lambda: {"generation": 0.6, "repetition": 0.2, "summation": 0.2})
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part of the steps, in which the learning rates fall to zero
    seed: int = 0
    model: GPTConfig = GPTConfig(vocab_size=len(ALPHABET))


@dataclass
class TuneConfig:
    steps: int = 200
    rows: int = 64  # examples per step, of in-distribution lengths
    lrs: tuple[float, ...] = (1.0,)  # each method takes the one with the best validation loss
    warmup: int = 10  # steps
    validation_rows: int = 256  # examples, of in-distribution lengths
    test_rows: int = 512  # examples, spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20}
FAST_TUNE = {"steps": 5, "validation_rows": 32, "test_rows": 24}


# ------------------------------------------------------------------------------------ pre-training

def warmup_then_decay(steps: int, warmup: int, decay: float):
    """Learning-rate factor by step: up over ``warmup`` steps, down over the last ``decay`` part."""
    return lambda step: min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def make_optimizers(model: GPT, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def pretrain(config: PretrainConfig, path: Path, device: str) -> GPT:
    """The base model: read from ``path`` if it is finished there, else trained (on) and saved.

    Saves every 50 steps, optimisers included; the text is a function of the seed, so a resumed
    run sees just what an uninterrupted one would have seen.
    """
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = make_optimizers(model, config)
    schedule = warmup_then_decay(config.steps, config.warmup, config.decay)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, schedule) for each in optimizers]
    parts = {"model": model, "muon": optimizers[0], "adamw": optimizers[1],
             "muon_schedule": schedulers[0], "adamw_schedule": schedulers[1]}
    done = read_base(path, config, parts) if path.exists() else 0

    batches = pretraining_batches(config.shares, random_source("pretrain", config.seed),
                                  config.rows, config.model.context)
    positions = torch.arange(config.model.context, device=device).expand(config.rows, -1)
    for _ in range(done):
        next(batches)
    bar = tqdm(range(done, config.steps), initial=done, total=config.steps, desc="pre-training",
               disable=done == config.steps)
    for step in bar:
        blocks = next(batches).to(device)  # (B, context + 1)
        logits = model(blocks[:, :-1], positions)
        loss = F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for each in (*optimizers, *schedulers):
            each.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            save_atomically({"config": asdict(config), "step": step + 1,
                             **{name: part.state_dict() for name, part in parts.items()}}, path)
    return model.requires_grad_(False).eval()


def read_base(path: Path, config: PretrainConfig, parts: dict) -> int:
    """Load a checkpoint into model, optimisers and schedulers; returns the steps it has done.

    Raises ValueError if the file cannot be read or was made with another configuration.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        refuse_difference(path, saved["config"], asdict(config))
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return saved["step"]
    except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a base checkpoint of this program "
                         f"({type(error).__name__}): choose another --out or delete it") from error


def refuse_difference(path: Path, found: dict, wanted: dict) -> None:
    """Raises ValueError that names the first setting in which two configurations differ."""
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise ValueError(f"{path} was made with {name} = {found.get(name)}, this run wants "
                             f"{wanted[name]}: choose another --out or the same settings")


# ------------------------------------------------------------------------------------------ tuning

def to_batch(rows: list[Example], device: str) -> VerbalBatch:
    return VerbalBatch.collate([encode(row.query) for row in rows],
                               [encode(row.response) for row in rows], device)


def tune(model: GPT, task, placement: Placement, lr: float, seed: int,
         config: TuneConfig) -> LatentTokens:
    """Latents of ``placement``, trained on in-distribution lengths; ``model`` stays frozen."""
    device = model.head.weight.device
    latents = LatentTokens(placement, model.config.width)
    latents.initialise(model.token_embedding.weight.cpu(), torch.Generator().manual_seed(seed))
    latents.to(device)
    optimizer = torch.optim.AdamW(latents.parameters(), lr=lr, weight_decay=0.0)
    schedule = warmup_then_decay(config.steps, config.warmup, decay=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rng = random_source(f"{task.name}/tune", seed)
    bar = tqdm(range(config.steps), desc=f"{placement}, seed {seed}, lr {lr:g}", leave=False)
    for _ in bar:
        rows = [task.example(rng, rng.choice(task.id_lengths)) for _ in range(config.rows)]
        loss = response_loss(model, latents, to_batch(rows, device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return latents


@torch.no_grad()
def validation_loss(model: GPT, latents: LatentTokens, task, seed: int, config: TuneConfig) -> float:
    """Mean loss in nats on in-distribution validation examples; what chooses a learning rate."""
    per_length = max(1, config.validation_rows // len(task.id_lengths))
    rows = examples(task, task.id_lengths, random_source(f"{task.name}/validation", seed),
                    per_length)
    return response_loss(model, latents, to_batch(rows, model.head.weight.device)).item()


def tune_best(model: GPT, task, placement: Placement, seed: int,
              config: TuneConfig) -> tuple[LatentTokens, dict]:
    """Tune once per learning rate, keep the best by validation loss; also what each rate gave."""
    tried = {}
    for lr in config.lrs:
        latents = tune(model, task, placement, lr, seed, config)
        tried[lr] = (validation_loss(model, latents, task, seed, config), latents)
    best = min(tried, key=lambda lr: tried[lr][0])
    return tried[best][1], {"lr": best, "validation_loss": {lr: tried[lr][0] for lr in tried}}


# -------------------------------------------------------------------------------------- evaluation

def answers(model: GPT, latents: LatentTokens, rows: list[Example], said: bool,
            label: str) -> list[str]:
    """The generated text of each example; ``said`` puts the instruction before the query."""
    texts = []
    bar = tqdm(range(0, len(rows), 128), desc=f"testing {label}", leave=False)
    for start in bar:
        chunk = rows[start:start + 128]
        queries = [encode(row.instruction * said + row.query) for row in chunk]
        longest = max(len(row.response) for row in chunk)
        texts += map(decode, generate(model, latents, queries, longest, TOKEN_ID[END]))
    return texts


def evaluate(model: GPT, latents: LatentTokens, task, method: str, seed: int, lengths,
             test_rows: int) -> list[dict]:
    """Rows of the results, one per length."""
    rows = examples(task, lengths, random_source(f"{task.name}/test", seed),
                    max(1, test_rows // len(lengths)))
    texts = answers(model, latents, rows, method == "instruction", f"{method}, seed {seed}")
    scores = defaultdict(list)
    for row, text in zip(rows, texts):
        for length, score in task.score(row, text).items():
            scores[length].append(score)
    return [{
        "task": task.name, "method": method, "seed": seed, "length": length,
        "split": "id" if length in task.id_lengths else "ood",
        "accuracy": statistics.fmean(score.accuracy for score in scores[length]),
        "exact": statistics.fmean(score.exact for score in scores[length]),
        "latents_inserted": latents_at(task, latents.placement, length),
        "trainable_parameters": latents.vectors.numel(),
    } for length in sorted(scores)]


def latents_at(task, placement: Placement, length: int) -> int:
    """Latents inserted in all at a length; every example of one length has the same layout."""
    row = task.example(random_source("layout", 0), length)
    return count_latents(placement, encode(row.query), encode(row.response))


# ----------------------------------------------------------------------------------------- reports

def summary(rows: list[dict]) -> str:
    """The table of one task, in Markdown: mean (and sd over seeds) of each split."""
    task = TASKS[rows[0]["task"]]
    lengths = sorted({row["length"] for row in rows})
    splits = {"ID": task.id_lengths, "OOD": task.ood_lengths, "far OOD": task.far_lengths}
    splits = {name: [n for n in lengths if n in split] for name, split in splits.items()}
    splits = {name: split for name, split in splits.items() if split}
    heads = [f"{metric} {name} {min(split)}-{max(split)}" for metric in ("accuracy", "exact")
             for name, split in splits.items()]
    lines = [f"| {task.name} | trained | inserted at {lengths[-1]} | " + " | ".join(heads) + " |",
             "|---" * (3 + len(heads)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [str(mine[-1]["trainable_parameters"]), str(mine[-1]["latents_inserted"])]
        cells += [mean_and_sd(mine, metric, split) for metric in ("accuracy", "exact")
                  for split in splits.values()]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_sd(rows: list[dict], metric: str, lengths: list[int]) -> str:
    """``0.93 ± 0.02``: mean over the lengths for each seed, then mean and sd over seeds."""
    by_seed = defaultdict(list)
    for row in rows:
        if row["length"] in lengths:
            by_seed[row["seed"]].append(row[metric])
    means = [statistics.fmean(values) for values in by_seed.values()]
    spread = f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""
    return f"{statistics.fmean(means):.2f}{spread}"


def show_example(row: Example, text: str, method: str) -> None:
    """Print one generated answer, wrapped, with ``^`` under its first mistake."""
    text = text[:len(row.response)]
    wrong = next((i for i, (a, b) in enumerate(zip(text, row.response)) if a != b),
                 len(text) if len(text) < len(row.response) else None)
    verdict = "no mistake" if wrong is None else f"first mistake at character {wrong + 1}"
    print(f"\n{method}: query {row.query}  ({verdict})")
    for start in range(0, len(text), 90):
        print("    " + text[start:start + 90])
        if wrong is not None and start <= wrong < start + 90:
            print(" " * (4 + wrong - start) + "^")


# ---------------------------------------------------------------------------------------- the run

class Run:
    """One folder: ``config.json``, ``base.pt``, ``latents/`` and ``results.json``."""

    def __init__(self, folder: Path, config: dict, device: str):
        """Open or create the folder. Raises ValueError if it holds another configuration's run,
        OSError if it cannot be written."""
        self.folder, self.device = folder, device
        self.results = {"config": config, "rows": [], "tuning": [], "environment": {
            "torch": torch.__version__, "python": platform.python_version(), "device": device,
            "threads": torch.get_num_threads(), "seconds": {}}}
        (folder / "latents").mkdir(parents=True, exist_ok=True)
        if (folder / "results.json").exists():
            self.resume(folder / "results.json")
        self.save()

    def resume(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            refuse_difference(path, found["config"], self.results["config"])
            self.results["rows"], self.results["tuning"] = found["rows"], found["tuning"]
            self.results["environment"]["seconds"] = found["environment"]["seconds"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a results file of this program: "
                             "choose another --out or delete it") from error

    def save(self) -> None:
        for name, content in (("config", self.results["config"]), ("results", self.results)):
            partial = self.folder / f"{name}.json.partial"
            partial.write_text(json.dumps(content, indent=1))
            os.replace(partial, self.folder / f"{name}.json")

    def rows(self, **wanted) -> list[dict]:
        """The rows that have these values."""
        return [row for row in self.results["rows"] if wanted.items() <= row.items()]

    def base(self, config: PretrainConfig) -> GPT:
        """The frozen base model, pre-trained here unless it was before."""
        started = time.perf_counter()
        model = pretrain(config, self.folder / "base.pt", self.device)
        if "pre-training" not in self.results["environment"]["seconds"]:
            self.finish("pre-training", started)
        print(f"base: {sum(p.numel() for p in model.parameters()):,} parameters, frozen")
        return model

    def latents_path(self, task, method: str, seed: int) -> Path:
        return self.folder / "latents" / f"{task.name}-{method}-seed{seed}.pt"

    def do(self, model: GPT, task, method: str, seed: int, lengths, config: TuneConfig) -> None:
        """Tune (unless ``method`` is a reference) and test one method, unless that is done."""
        if self.rows(task=task.name, method=method, seed=seed):
            return
        started = time.perf_counter()
        if method in REFERENCES:
            latents = LatentTokens(NO_LATENTS, model.config.width).to(self.device)
        else:
            latents, chosen = tune_best(model, task, Placement.parse(method), seed, config)
            latents.save(self.latents_path(task, method, seed))
            self.results["tuning"].append({"task": task.name, "method": method, "seed": seed,
                                           **chosen})
        self.results["rows"] += evaluate(model, latents, task, method, seed, lengths,
                                         config.test_rows)
        self.finish(f"{task.name}, {method}, seed {seed}", started)

    def finish(self, stage: str, started: float) -> None:
        """Save the results, and note and print what the stage took."""
        seconds = time.perf_counter() - started
        self.results["environment"]["seconds"][stage] = round(seconds, 1)
        self.save()
        print(f"{stage}: {seconds:.0f} s")

    def show_examples(self, model: GPT, task, methods: list[str], length: int) -> None:
        """Print three generated answers in all, of the first test examples."""
        rows = examples(task, [length], random_source(f"{task.name}/test", 0), -(-3 // len(methods)))
        shown = [(method, row) for row in rows for method in methods][:3]
        for method, row in shown:
            latents = LatentTokens.load(self.latents_path(task, method, 0), model.config.width)
            text, = answers(model, latents.to(self.device), [row], False, method)
            show_example(row, text, method)


# -------------------------------------------------------------------------------- the command line

class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, and exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def learning_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


def parse_arguments(arguments: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="train.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="generation", choices=[*TASKS, "all"], help="default: %(default)s")
    add("--methods", nargs="+", metavar="M", default=["Start_4", "End_4", "Comma_4"],
        help="placements: Start_m, End_m, Comma_m, k_m, or sums such as Start_1+Comma_1; a -own "
             "at the end gives latents positions of their own; default: Start_4 End_4 Comma_4")
    add("--own-positions", action="store_true",
        help="switch position sharing off: put -own behind every method")
    add("--seeds", type=positive, default=1, metavar="N",
        help="tune and test with seeds 0 ... N-1; default: 1")
    add("--steps", type=positive, default=TuneConfig.steps, metavar="N",
        help="steps of tuning; default: %(default)s")
    add("--lr", type=learning_rate, nargs="+", default=TuneConfig.lrs, metavar="LR",
        help="learning rates of tuning; of several, each method takes the one with the best "
             "validation loss; default: " + " ".join(f"{lr:g}" for lr in TuneConfig.lrs))
    add("--lengths", type=positive, nargs="+", metavar="N",
        help="lengths of the test examples; default: the task's own")
    add("--pretrain-steps", type=positive, default=PretrainConfig.steps, metavar="N",
        help="steps of pre-training; default: %(default)s")
    add("--pretrain-seed", type=int, default=0, metavar="N", help="seed of the base; default: 0")
    add("--device", default="auto", help="auto, cpu, cuda or mps; default: auto")
    add("--out", type=Path, metavar="DIR",
        help="folder of the run; default: runs/default, with --fast runs/fast")
    add("--fast", action="store_true",
        help="everything in under a minute, for a first look; the numbers mean nothing")
    return parser, parser.parse_args(arguments)


def choose_device(name: str) -> str:
    """Raises ValueError if the device is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(each for each in ("cuda", "mps", "cpu") if there[each])
    if not there.get(name):
        valid = ", ".join(each for each in there if there[each])
        raise ValueError(f"device {name!r} is not available here; available: auto, {valid}")
    return name


def prepare(args: argparse.Namespace) -> tuple[Run, PretrainConfig, TuneConfig]:
    """Check every argument before anything is computed, and open the folder.

    Raises ValueError or OSError with one line that says what is wrong.
    """
    own = "-own" if args.own_positions else ""
    args.methods = list(dict.fromkeys(str(Placement.parse(name + own)) for name in args.methods))
    args.tasks = list(TASKS.values()) if args.task == "all" else [TASKS[args.task]]
    pretraining = PretrainConfig(steps=args.pretrain_steps, seed=args.pretrain_seed)
    tuning = TuneConfig(steps=args.steps, lrs=tuple(args.lr))
    if args.fast:
        pretraining = replace(pretraining, **FAST_PRETRAIN)
        tuning = replace(tuning, **FAST_TUNE)
    for task in args.tasks:
        for length in args.lengths or task.test_lengths:
            check_length(task, length, pretraining.model.context)
    folder = args.out or Path("runs/fast" if args.fast else "runs/default")
    config = {"pretrain": asdict(pretraining), "tune": asdict(tuning), "lengths": args.lengths}
    run = Run(folder, json.loads(json.dumps(config)), choose_device(args.device))
    return run, pretraining, tuning


def execute(run: Run, model: GPT, args: argparse.Namespace, config: TuneConfig) -> None:
    """Every task, seed and method; then the tables and three examples of each task."""
    for task in args.tasks:
        for seed in range(args.seeds):
            for method in (*REFERENCES, *args.methods):
                run.do(model, task, method, seed, args.lengths or task.test_lengths, config)
    for task in args.tasks:
        print("\n" + summary(run.rows(task=task.name)))
        run.show_examples(model, task, args.methods, (args.lengths or task.test_lengths)[-1])
    if args.fast:
        print("\n--fast trains for a few steps only: these numbers mean nothing")
    print(f"\nresults: {run.folder / 'results.json'}")


def main(arguments: list[str] | None = None) -> None:
    parser, args = parse_arguments(arguments)
    try:
        run, pretraining, tuning = prepare(args)
        model = run.base(pretraining)
        execute(run, model, args, tuning)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; what is finished is in {args.out}, "
                         "and the same command goes on from there\n")


if __name__ == "__main__":
    main()
