"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           the main job
    python train.py --task all --seeds 5      all tasks, five seeds of tuning and testing
    python train.py --methods Comma_2 8_2     more rows, on the same base

A run lives in one folder, --out. What it has finished is reused by the next command there, so a run
that was stopped goes on where it stood. After an edit of the code choose a new --out.
``extras/report.py`` prints tables with intervals, ``extras/controls.py`` adds control rows.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
import json
from math import inf, isnan, nan
import os
from pathlib import Path
from statistics import fmean
import time
import zlib

import torch
import torch.nn.functional as F
from tqdm import trange

from latent_tokens import (Batch, LatentTokens, Placement, UserError, generate, make_batch,
                           response_loss)
from model import GPT, GPTConfig
from tasks import (ALPHABET, END, TASKS, TOKEN_ID, Example, Task, decode, documents, draw,
                   draw_examples, encode, pretraining_batches, random_source)


@dataclass(frozen=True)
class PretrainConfig:
    seed: int = 0
    steps: int = 1650
    batch_size: int = 11  # blocks per step
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part (0 ... 1) of the steps, over which the rates fall to zero
    model: GPTConfig = GPTConfig(vocab_size=len(ALPHABET))


@dataclass(frozen=True)
class TuneConfig:
    """The budget of one tuning, the same for every method, and that of its test."""

    steps: int = 400
    batch_size: int = 32  # examples per step, of in-distribution lengths
    lrs: tuple[float, ...] = (1.0, 2.0)  # each tuning takes the one with the best validation loss
    full_lrs: tuple[float, ...] = (1e-4, 1e-3)  # the same for all weights ("full")
    weight_decay: float = 0.05  # keeps latents about as long as embeddings; long ones fail far OOD
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_examples: int = 256  # of in-distribution lengths
    test_examples: int = 512  # spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20, "warmup": 5}
FAST_TUNE = {"steps": 5, "warmup": 1, "validation_examples": 20, "test_examples": 22}


@dataclass(frozen=True)
class Method:
    """How the base is made to follow the target rule: by latents, words, or new weights."""

    placement: Placement = Placement()
    instruction: bool = False  # the rule in words before the query
    reminders: bool = False  # and after every comma: Start_m+Comma_m in words
    full: bool = False  # all weights tuned
    control: str = ""  # what became of the latents after tuning (extras/controls.py)

    @classmethod
    def parse(cls, name: str) -> "Method":
        """``full``, the name of a reference, or a placement. Raises UserError on anything else."""
        return REFERENCES[name] if name in REFERENCES else cls(Placement.parse(name))

    def __str__(self) -> str:
        names = {method: name for name, method in REFERENCES.items()}
        return names.get(self, str(self.placement) + (f":{self.control}" if self.control else ""))


REFERENCES = {"base": Method(), "instruction": Method(instruction=True),
              "reminders": Method(instruction=True, reminders=True), "full": Method(full=True)}
METHODS = {  # all of a task train equally many numbers; a task of your own has the first row
    "generation": ["Start_4", "End_4", "Comma_4"],
    "repetition": ["Start_2", "End_2", "Comma_2", "Start_1+Comma_1"],
    "summation": ["Start_2", "End_2", "Comma_2", "4_2", "8_2"]}


def learning_rate(step: int, config: PretrainConfig | TuneConfig) -> float:
    """As a share of its peak: up over ``warmup`` steps, down to zero over the last ``decay``."""
    return min(1.0, (step + 1) / max(1, config.warmup),
               (config.steps - step) / max(1, config.decay * config.steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * share


def make_optimizers(model: GPT, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and head."""
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    chosen = set(map(id, matrices))
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def pretrain(config: PretrainConfig, path: Path, device: str) -> GPT:
    """The frozen base: read from ``path`` if it is finished there, else trained (on) and saved.

    Saves every 50 steps, optimizers included, so that a run that was stopped ends up like an
    unstopped one. Raises UserError if ``path`` cannot be read, or has other settings or text.
    """
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = make_optimizers(model, config)
    source = documents(random_source("pretrain", config.seed))
    text = "".join(next(source) for _ in range(1000))  # enough to notice an edited document()
    settings = asdict(config) | {"checksum of the text": zlib.crc32(text.encode())}
    done = load_base(path, settings, model, optimizers) if path.exists() else 0
    batches = pretraining_batches(random_source("pretrain", config.seed), config.batch_size,
                                  config.model.block_size)
    position_ids = torch.arange(config.model.block_size, device=device)
    position_ids = position_ids.expand(config.batch_size, -1)  # (B, N)
    bar = trange(0 if done == config.steps else config.steps, desc="pre-training")
    for step in bar:
        blocks = next(batches).to(device)  # (B, N + 1)
        if step < done:
            continue  # the model has seen these
        logits = model(model.embed(blocks[:, :-1]), position_ids)  # (B, N, V)
        loss = F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate(step, config))
            optimizer.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            checkpoint = {"settings": settings, "step": step + 1, "model": model.state_dict(),
                          "optimizers": [each.state_dict() for each in optimizers]}
            write(path, lambda file: torch.save(checkpoint, file))
    return model.requires_grad_(False).eval()


def load_base(path: Path, settings: dict, model: GPT, optimizers: list) -> int:
    """Load a checkpoint into model and optimizers; returns the steps it has done."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        refuse_difference(path, saved["settings"], settings)
        for part, state in zip((model, *optimizers), (saved["model"], *saved["optimizers"])):
            part.load_state_dict(state)
        return saved["step"]
    except UserError:
        raise
    except Exception as error:  # torch.load raises half a dozen types on a damaged file
        raise UserError(f"{path} is not a readable base: delete it or take a new --out") from error


def refuse_difference(path: Path, saved: dict, asked: dict, section: str = "") -> None:
    """Raises UserError that names the first setting that was asked for and not saved."""
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(saved.get(name), dict):
            refuse_difference(path, saved[name], value, f"{section}{name}.")
        elif saved.get(name) != value:
            raise UserError(f"{path} was made with {section}{name} = {saved.get(name)}, this run "
                            f"asks for {value}: choose a new --out, or the same settings and text")


def to_batch(placement: Placement, examples: list[Example], device) -> Batch:
    """Queries with their true responses, for the loss."""
    return make_batch(placement, [encode(example.query) for example in examples],
                      [encode(example.response) for example in examples], device)


def tune(base: GPT, task: Task, method: Method, lr: float, seed: int,
         config: TuneConfig) -> tuple[GPT, LatentTokens]:
    """Train latents, or a copy of all weights, on in-distribution lengths; ``base`` stays."""
    model, latents = base, LatentTokens(method.placement, base.config.n_embd)
    latents.initialize(base.token_embedding.cpu(), torch.Generator().manual_seed(seed))
    latents.to(base.device)
    if method.full:
        model = deepcopy(base).requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    else:
        optimizer = torch.optim.Muon(latents.parameters(), lr=lr, weight_decay=config.weight_decay)
    rng = random_source(f"{task.name}/tune", seed)
    bar = trange(config.steps, desc=f"tuning {method}, seed {seed}, lr {lr:g}", leave=False)
    for step in bar:
        examples = [draw(task, rng.choice(task.id_lengths), "tune", rng)
                    for _ in range(config.batch_size)]
        loss = response_loss(model, latents, to_batch(method.placement, examples, base.device))
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate(step, config))
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model, latents


def tune_best(base: GPT, task: Task, method: Method, seed: int,
              config: TuneConfig) -> tuple[GPT, LatentTokens, dict]:
    """Tune once per learning rate and keep the best by validation loss; also what each gave."""
    examples = draw_examples(task, task.id_lengths, "validation", seed,
                             max(1, config.validation_examples // len(task.id_lengths)))
    batch = to_batch(method.placement, examples, base.device)
    tuned, losses = {}, {}
    for lr in config.full_lrs if method.full else config.lrs:
        tuned[lr] = tune(base, task, method, lr, seed, config)
        with torch.no_grad():
            losses[lr] = response_loss(*tuned[lr], batch).item()
    best = min(losses, key=lambda lr: (isnan(losses[lr]), losses[lr]))
    return *tuned[best], {"lr": best, "validation_loss": losses}


def answers(model: GPT, latents: LatentTokens, task: Task, method: Method,
            examples: list[Example]) -> list[str]:
    """The generated text for each example, without the reminders in it."""
    header = task.header(task.target_rule)
    instruction = header if method.instruction else ""
    reminder = header if method.reminders else ""
    texts = []
    for start in trange(0, len(examples), 128, desc=f"testing {method}", leave=False):
        chunk = examples[start:start + 128]
        queries = [encode(instruction + each.query.replace(",", "," + reminder)) for each in chunk]
        longest = max(len(each.response.replace(",", "," + reminder)) for each in chunk)
        responses = generate(model, latents, queries, longest, TOKEN_ID[END], encode(reminder))
        texts += [decode(token_ids).replace("," + reminder, ",") for token_ids in responses]
    return texts


def test(model: GPT, latents: LatentTokens, task: Task, method: Method, seed: int,
         config: TuneConfig) -> list[dict]:
    """The rows of ``results.json`` for one method and seed, one for each length."""
    examples = draw_examples(task, task.test_lengths, "test", seed,
                             max(1, config.test_examples // len(task.test_lengths)))
    scores = defaultdict(list)
    for example, text in zip(examples, answers(model, latents, task, method, examples)):
        for length, score in task.score(example, text).items():
            scores[length].append(score)
    trained = sum(each.numel() for each in (*model.parameters(), *latents.parameters())
                  if each.requires_grad)
    return [{
        "task": task.name, "method": str(method), "seed": seed, "length": length,
        "split": "id" if length in task.id_lengths else "ood",
        "accuracy": fmean(score.accuracy for score in scores[length]),
        "exact": fmean(score.exact for score in scores[length]),
        "latents_inserted": latents_inserted(task, latents.placement, length),
        "trainable_parameters": trained,
    } for length in scores]


def latents_inserted(task: Task, placement: Placement, length: int) -> int:
    """How many in an example of this length; its layout depends on nothing else."""
    example = task.example(random_source("layout", 0), length)
    batch = make_batch(placement, [encode(example.query)], [encode(example.response)])
    return batch.sources.shape[1] - batch.token_ids.shape[1]


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Writes a temporary file, then renames it: a crash never leaves half a file."""
    temporary = path.with_name(f"{path.name}.partial")
    save(temporary)
    os.replace(temporary, path)


class Run:
    """A folder: ``base.pt``, ``latents/``, and ``results.json`` with a row for all that was tested.

    Raises UserError if the folder cannot be used, or holds damaged results or other settings.
    """

    def __init__(self, folder: Path, pretraining: PretrainConfig, tuning: TuneConfig):
        self.path, self.tuning = folder / "results.json", tuning
        config = json.dumps({"pretrain": asdict(pretraining), "tune": asdict(tuning)})
        self.results = {"config": json.loads(config), "torch": torch.__version__,
                        "threads": torch.get_num_threads(), "seconds": {}, "tuning": [], "rows": []}
        try:
            (folder / "latents").mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("no permission to write")
            if self.path.exists():
                saved = json.loads(self.path.read_text())
                self.results = {part: saved[part] for part in self.results}
                dict(saved["config"])
        except OSError as error:
            raise UserError(f"--out {folder} cannot be used: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} is not a readable file of results: delete it or choose "
                            "another --out") from error
        refuse_difference(self.path, self.results["config"], json.loads(config))

    def latents_path(self, task: Task, method: Method, seed: int) -> Path:
        return self.path.parent / "latents" / f"{task.name}-{method.placement}-seed{seed}.pt"

    def has(self, task: Task, method: str, seed: int) -> bool:
        return any((row["task"], row["method"], row["seed"]) == (task.name, method, seed)
                   for row in self.results["rows"])

    def tune_and_test(self, base: GPT, task: Task, method: Method, seed: int) -> GPT:
        """Add the rows of one method and seed; returns the model that was tested."""
        started = time.perf_counter()
        model, latents = base, LatentTokens(Placement(), base.config.n_embd).to(base.device)
        if method.full or method.placement.groups:
            model, latents, record = tune_best(base, task, method, seed, self.tuning)
            self.results["tuning"].append(
                {"task": task.name, "method": str(method), "seed": seed} | record)
        if method.placement.groups:
            write(self.latents_path(task, method, seed), latents.save)
        self.add(test(model, latents, task, method, seed, self.tuning), started)
        return model

    def add(self, rows: list[dict], started: float) -> None:
        """Keep the rows of one method and seed: ``results.json`` is written at once."""
        stage = "{task}, {method}, seed {seed}".format(**rows[0])
        self.results["rows"] += rows
        self.results["seconds"][stage] = round(time.perf_counter() - started, 1)
        write(self.path, lambda file: file.write_text(json.dumps(self.results, indent=1)))
        print(f"{stage}: {self.results['seconds'][stage]:.0f} s")

    def print_table(self, task: Task) -> None:
        """Means over lengths and seeds, one line for each method."""
        splits = {"ID": task.id_lengths, "OOD": task.ood_lengths, "far OOD": task.far_lengths}
        rows = [row for row in self.results["rows"] if row["task"] == task.name]
        print(f"\n{task.name}, {task.metrics[0]}".ljust(39), *(f"{name:>8}" for name in splits))
        for method in dict.fromkeys(row["method"] for row in rows):
            means = [fmean([row[task.metrics[0]] for row in rows if row["method"] == method
                            and row["length"] in lengths] or [nan]) for lengths in splits.values()]
            print(f"{method:38}", *(f"{mean:8.2f}" for mean in means))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    devices = [*(name for name in usable if usable[name]), "cpu"]
    add("--task", default="generation", choices=[*TASKS, "all"], help="default: generation")
    add("--methods", nargs="+", metavar="M", help="placements such as Start_4, 8_2, Comma_4-own "
        "(positions of its own) or Start_1+Comma_1, or full; default: those of the task")
    add("--seeds", type=int, default=1, metavar="N", help="tune and test with 0 ... N-1")
    add("--steps", type=int, default=TuneConfig.steps, metavar="N", help="of tuning; default: 400")
    add("--lr", type=float, nargs="+", default=TuneConfig.lrs, metavar="X",
        help="rates of latents to choose from by validation loss; default: 1.0 2.0")
    add("--pretrain-seed", type=int, default=0, metavar="N", help="seed of the base; default: 0")
    add("--device", default=devices[0], choices=devices, help=f"default: {devices[0]}")
    add("--out", type=Path, metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--fast", action="store_true", help="a try-out: ignores --steps, means nothing")
    return parser


def plan(args: argparse.Namespace) -> dict[Task, list[Method]]:
    """The methods to compare in each task. Raises UserError on bad arguments."""
    if not all(0 < number < inf for number in (args.seeds, args.steps, *args.lr)):
        raise UserError("--seeds, --steps and --lr must be positive and finite")
    methods = {}
    for task in TASKS.values() if args.task == "all" else [TASKS[args.task]]:
        names = args.methods or METHODS.get(task.name, METHODS["generation"])
        names = ["base", "instruction", "reminders", *names]
        methods[task] = list(dict.fromkeys(map(Method.parse, names)))
    return methods


def run(args: argparse.Namespace) -> None:
    """Pre-train, freeze, tune, test, print."""
    pretraining = PretrainConfig(seed=args.pretrain_seed)
    tuning = TuneConfig(steps=args.steps, lrs=tuple(sorted(set(args.lr))))
    if args.fast:
        pretraining, tuning = replace(pretraining, **FAST_PRETRAIN), replace(tuning, **FAST_TUNE)
    methods = plan(args)
    folder = args.out or Path("runs/fast" if args.fast else "runs/default")
    record = Run(folder, pretraining, tuning)
    base = pretrain(pretraining, folder / "base.pt", args.device)
    for task in methods:
        for seed, method in product(range(args.seeds), methods[task]):
            if not record.has(task, str(method), seed):
                record.tune_and_test(base, task, method, seed)
        record.print_table(task)
    print(f"\nwrote {record.path}" + "; with --fast the numbers mean nothing" * args.fast)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    try:
        run(parser.parse_args(arguments))
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on from what is finished\n")


if __name__ == "__main__":
    main()
