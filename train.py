"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           the main job
    python train.py --task all --seeds 2      all tasks, each on a base of its own; two seeds
    python train.py --bases 0 1 2             three bases: the seeds of their pre-training
    python train.py --methods Comma_2 8_2     more rows, on the same base

A run lives in one folder, --out. What it has finished is reused by the next command there, so a run
that was stopped goes on where it stood. After an edit of the code choose a new --out.
``extras/report.py`` prints tables with intervals, ``extras/controls.py`` adds control rows.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
import json
from math import isfinite, nan
import os
from pathlib import Path
from statistics import fmean
import time
import zlib

import torch
from torch import Tensor
import torch.nn.functional as F
from tqdm import tqdm, trange

from latent_tokens import (Batch, LatentTokens, Placement, UserError, generate, make_batch, pad,
                           response_logits, response_loss)
from model import GPT, GPTConfig
from tasks import (ALPHABET, END, NOT_SCORED, TASKS, TOKEN_ID, Example, Task, decode, draw,
                   draw_examples, encode, pretraining_batch, random_source, target_ids)

if os.name == "nt":
    import msvcrt
else:
    import fcntl


# ---------------------------------------------------------------------------------------- optimizer

class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` in float32: with AVX2 only, its bfloat16 takes 20 times as long."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
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
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


# ----------------------------------------------------------------------------------------- settings

@dataclass(frozen=True)
class PretrainConfig:
    seed: int = 0
    steps: int = 800
    short: tuple[int, int] = (8, 110)  # rows and tokens of a batch in the first steps,
    short_until: float = 0.5  # up to this share of them
    long: tuple[int, int] = (5, 352)  # and afterwards
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part (0 ... 1) of the steps, over which the rates fall to zero
    needed_skill: float = 0.95  # share of exact answers with reminders; with 0 it is not measured
    repeats: int = 2  # of the second half of the steps, at most, where that is not reached
    model: GPTConfig = GPTConfig(vocab_size=len(ALPHABET))


@dataclass(frozen=True)
class TuneConfig:
    """The budget of one tuning, the same for every method, and that of its test."""

    steps: int = 300
    batch_size: int = 16  # examples per step, all of one in-distribution length
    optimizer: str = "Muon"  # of latents; or AdamW, which trains all weights ("full")
    # Pairs of learning rate and weight decay. Every tuning tries all and keeps the one with the
    # best validation loss.
    trials: tuple = ((1.0, 0.05), (2.0, 0.05), (1.0, 0.2))
    full_trials: tuple = ((1e-4, 0.05), (3e-4, 0.05), (1e-3, 0.05))
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_examples: int = 256  # of in-distribution lengths
    test_examples: int = 512  # spread evenly over the test lengths


PRETRAINING = {  # steps that are enough on most bases, and the share of short batches
    "generation": {"steps": 900, "short_until": 0.5},
    "repetition": {"steps": 640, "short": (16, 110), "short_until": 0.45},
    "summation": {"steps": 660, "short_until": 1 / 3}}
OPTIMIZERS = {"Muon": Muon, "AdamW": torch.optim.AdamW}
FAST_PRETRAIN = {"steps": 20, "warmup": 5, "needed_skill": 0.0}
FAST_TUNE = {"steps": 5, "warmup": 1, "validation_examples": 20, "test_examples": 22}
TESTING = 10  # 512 answers take about ten times as long as 22


# ------------------------------------------------------------------------------------------ methods

class Diverged(UserError):
    """A tuning without a result. The other methods go on."""


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
    "repetition": ["Start_4", "End_4", "Start_2+Comma_2"],
    "summation": ["Start_2", "End_2", "Comma_2", "8_2"]}


# ------------------------------------------------------------------------------------- pre-training

class Unskilled(UserError):
    """A base that never learned its skill: nothing is tuned on it. The other bases go on."""


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
    return [Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def schedule_step(step: int, config: PretrainConfig) -> int:
    """Where a step stands in the schedule: after its end, in its second half again."""
    half = config.steps // 2
    return step if step < config.steps else half + (step - half) % (config.steps - half)


def pretraining_loss(model: GPT, task: Task, step: int, config: PretrainConfig) -> torch.Tensor:
    """The mean cross-entropy of one batch of text: short rows first, then long ones."""
    progress = schedule_step(step, config) / config.steps
    shape = config.short if progress < config.short_until else config.long
    rng = random_source(f"{task.name}/pretrain/{step}", config.seed)
    token_ids, targets = pretraining_batch(task, rng, progress, *shape)  # each (B, N)
    position_ids = torch.arange(shape[1], device=model.device).expand(shape)
    logits = model(model.embed(token_ids.to(model.device)), position_ids)  # (B, N, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.to(model.device).flatten())


def pretrain(task: Task, config: PretrainConfig, path: Path, device: str) -> GPT:
    """The frozen base: read from ``path`` if it is finished there, else trained (on) and saved.

    A skill forms late, at a random moment. A base that lacks it at the end of the schedule goes
    through the second half again, on new text. Saves every 50 steps, optimizers included, so that
    a run that was stopped ends up like an unstopped one. Raises Unskilled where that was not
    enough, and UserError if ``path`` cannot be read or written, or has other settings or text, and
    where the loss is not finite.
    """
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = make_optimizers(model, config)
    rng = random_source("checksum", 0)
    text = "".join(task.document(rng, n / 1000) for n in range(1000))
    settings = asdict(config) | {"text": zlib.crc32(text.encode())}
    again = config.steps - config.steps // 2
    ends = range(config.steps, config.steps + again * config.repeats + 1, again)
    done, able = 0, None
    if path.exists():
        done, able = load_base(path, settings, ends[-1], model, optimizers)

    def save(step: int, able: float | None = None) -> None:
        checkpoint = {"settings": settings, "step": step, "skill": able,
                      "model": model.state_dict(),
                      "optimizers": [each.state_dict() for each in optimizers]}
        write(path, lambda file: torch.save(checkpoint, file))

    while able is None or able < config.needed_skill:
        end = next((end for end in ends if end > done), None)
        lacking = f"{path} answers only {able or 0:.0%} of 300 queries, with reminders in words"
        if end is None:
            raise Unskilled(f"{lacking}: nothing is tuned on it, take another seed with --bases")
        if able is not None:
            tqdm.write(f"{lacking}: {again} more steps")
        train_base(model, optimizers, task, config, range(done, end), save)
        done, able = end, skill(model, task, 300) if config.needed_skill else 0.0
        save(done, able)
    return model.requires_grad_(False).eval()


def train_base(model: GPT, optimizers: list[torch.optim.Optimizer], task: Task,
               config: PretrainConfig, steps: range, save: Callable[[int], None]) -> None:
    """Take these steps. Calls ``save`` with the steps that are done, but at their end."""
    bar = tqdm(steps, initial=steps.start, total=steps.stop, desc="pre-training", leave=False)
    for step in bar:
        loss = pretraining_loss(model, task, step, config)
        if not loss.isfinite():
            raise UserError(f"{task.name}, base {config.seed}: the loss of step {step} is "
                            f"{loss.item()}: lower the rates")
        loss.backward()
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate(schedule_step(step, config), config))
            optimizer.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 100 == 0:
            bar.set_description(f"pre-training, skill {skill(model, task, 40):.2f}")
        if (step + 1) % 50 == 0 and step + 1 < steps.stop:
            save(step + 1)


@torch.no_grad()
def skill(model: GPT, task: Task, count: int) -> float:
    """The share of exact answers with reminders, by teacher forcing: what a base can do at all."""
    method = REFERENCES["reminders"]
    latents = LatentTokens(method.placement, model.config.n_embd).to(model.device)
    examples = draw_examples(task, task.test_lengths, "validation", 0, count)
    exact = []
    for start in range(0, len(examples), 100):
        chunk = [in_words(task, method, example) for example in examples[start:start + 100]]
        batch = to_batch(method.placement, chunk, model.device)
        targets = pad([target_ids(task, each.response) for each in chunk], NOT_SCORED, model.device)
        right = response_logits(model, latents, batch).argmax(dim=-1) == targets  # (B, R)
        exact += (right | (targets == NOT_SCORED)).all(dim=1).tolist()
    return fmean(exact)


def load_base(path: Path, settings: dict, end: int, model: GPT,
              optimizers: list) -> tuple[int, float | None]:
    """Load a checkpoint into model and optimizers. Returns the steps done, at most ``end``, and
    the skill if it was measured after them."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        refuse_difference(path, saved["settings"], settings)
        for part, state in zip((model, *optimizers), (saved["model"], *saved["optimizers"])):
            part.load_state_dict(state)
        if saved["step"] not in range(end + 1) or not 0 <= (saved["skill"] or 0) <= 1:
            raise ValueError("impossible step or skill")
        if not all(weights.isfinite().all() for weights in model.parameters()):
            raise ValueError("weights that are not finite")
        return saved["step"], saved["skill"]
    except UserError:
        raise
    except Exception as error:  # torch.load raises half a dozen types on a damaged file
        raise UserError(f"{path} is not a readable base: delete it or take a new --out") from error


# ------------------------------------------------------------------------------------------- tuning

def in_words(task: Task, method: Method, example: Example) -> Example:
    """The example with the rule in words before the query, after every comma, or in neither."""
    header = task.header(task.target_rule)
    comma = "," + header * method.reminders
    return Example(header * method.instruction + example.query.replace(",", comma),
                   example.response.replace(",", comma))


def to_batch(placement: Placement, examples: list[Example], device) -> Batch:
    """Queries with their true responses, for the loss."""
    return make_batch(placement, [encode(example.query) for example in examples],
                      [encode(example.response) for example in examples], device)


def tune(base: GPT, task: Task, method: Method, lr: float, weight_decay: float, seed: int,
         config: TuneConfig) -> tuple[GPT, LatentTokens]:
    """Train latents, or a copy of all weights, on in-distribution lengths; ``base`` stays."""
    model, latents = base, LatentTokens(method.placement, base.config.n_embd)
    latents.initialize(base.token_embedding.cpu(), torch.Generator().manual_seed(seed))
    latents.to(base.device)
    trained, make_optimizer = latents, OPTIMIZERS[config.optimizer]
    if method.full:
        trained = model = deepcopy(base).requires_grad_(True)
        make_optimizer = torch.optim.AdamW
    optimizer = make_optimizer(trained.parameters(), lr=lr, weight_decay=weight_decay)
    rng = random_source(f"{task.name}/tune", seed)
    bar = trange(config.steps, leave=False,
                 desc=f"tuning {method}, seed {seed}, lr {lr:g}, decay {weight_decay:g}")
    for step in bar:
        length = rng.choice(task.id_lengths)
        examples = [draw(task, length, "tune", rng) for _ in range(config.batch_size)]
        loss = response_loss(model, latents, to_batch(method.placement, examples, base.device))
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate(step, config))
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model, latents


def tune_best(base: GPT, task: Task, method: Method, seed: int,
              config: TuneConfig) -> tuple[GPT, LatentTokens, dict]:
    """Tune once a trial and keep the best by validation loss; also what each gave.

    Raises Diverged if no trial ends with a finite loss.
    """
    examples = draw_examples(task, task.id_lengths, "validation", seed, config.validation_examples)
    batch = to_batch(method.placement, examples, base.device)
    trials, tuned = [], []
    for lr, decay in config.full_trials if method.full else config.trials:
        tuned.append(tune(base, task, method, lr, decay, seed, config))
        with torch.no_grad():
            loss = response_loss(*tuned[-1], batch).item()
        trials.append({"lr": lr, "weight_decay": decay,
                       "validation_loss": loss if isfinite(loss) else None})
    losses = {index: trial["validation_loss"] for index, trial in enumerate(trials)
              if trial["validation_loss"] is not None}
    if not losses:
        raise Diverged(f"{task.name}, {method}, seed {seed}: no trial ended with a finite loss")
    best = min(losses, key=losses.get)
    return *tuned[best], trials[best] | {"trials": trials}


# ------------------------------------------------------------------------------------------ testing

def answers(model: GPT, latents: LatentTokens, task: Task, method: Method,
            examples: list[Example]) -> list[str]:
    """The generated text for each example, without the reminders in it."""
    reminder = task.header(task.target_rule) * method.reminders
    texts = []
    for start in trange(0, len(examples), 256, desc=f"testing {method}", leave=False):
        chunk = [in_words(task, method, each) for each in examples[start:start + 256]]
        responses = generate(model, latents, [encode(each.query) for each in chunk],
                             max(len(each.response) for each in chunk), TOKEN_ID[END],
                             encode(reminder))
        texts += [decode(token_ids).replace("," + reminder, ",") for token_ids in responses]
    return texts


def test(model: GPT, latents: LatentTokens, task: Task, method: Method, seed: int,
         config: TuneConfig) -> list[dict]:
    """The rows of ``results.json`` for one method and seed, one for each length."""
    examples = draw_examples(task, task.test_lengths, "test", seed, config.test_examples)
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


# ------------------------------------------------------------------------------ the folder of a run

def refuse_difference(path: Path, saved: dict, asked: dict, section: str = "") -> None:
    """Raises UserError that names the first setting that was asked for and not saved."""
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(saved.get(name), dict):
            refuse_difference(path, saved[name], value, f"{section}{name}.")
        elif saved.get(name) != value and name == "text":
            raise UserError(f"{path} was pre-trained on another text than tasks.py makes now: "
                            "choose a new --out, or undo the edit")
        elif saved.get(name) != value:
            raise UserError(f"{path} was made with {section}{name} = {saved.get(name)}, this run "
                            f"asks for {value}: choose a new --out, or the same settings")


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Write a temporary file, then rename it: a crash never leaves half a file.

    Raises UserError where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns the one into the other
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold its lock, which the system frees however this process ends.

    Raises UserError if the folder cannot be used, or another process holds the lock.
    """
    try:
        (folder / "latents").mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / "latents"):
            if not os.access(each, os.W_OK):
                raise PermissionError(f"no permission to write to {each}")
        file = open(folder / ".lock", "w")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be used: {error}") from error
    with file:
        try:
            if os.name == "nt":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another command is writing to {folder}: wait for it, or choose "
                            "another --out") from error
        yield


def check_rows(rows: list[dict]) -> None:
    """Raises ValueError and the like on rows that no test wrote, or where some were taken out."""
    kinds = {"task": str, "method": str, "split": str, "base": int, "seed": int, "length": int,
             "accuracy": (int, float), "exact": (int, float)}
    lengths, tested = defaultdict(set), defaultdict(set)
    for row in rows:
        for name, kind in kinds.items():
            if not isinstance(row[name], kind):
                raise TypeError(f"{name} = {row[name]!r} in a row")
        lengths[row["task"]].add(row["length"])
        tested[row["task"], row["method"], row["base"], row["seed"]].add(row["length"])
    for key, found in tested.items():
        if found != lengths[key[0]]:
            raise ValueError(f"length {min(lengths[key[0]] - found)} of {key} is missing")


class Run:
    """A folder: bases, ``latents/``, and ``results.json`` with a row for all that was tested.

    Raises UserError if it holds damaged results or other settings.
    """

    def __init__(self, folder: Path, tuning: TuneConfig):
        self.path, self.tuning = folder / "results.json", tuning
        config = json.dumps(asdict(tuning))
        self.results = {"config": json.loads(config), "torch": torch.__version__,
                        "threads": torch.get_num_threads(), "bases": {}, "seconds": {},
                        "tuning": [], "rows": []}
        try:
            if self.path.exists():
                saved = json.loads(self.path.read_text())
                self.results = {part: type(empty)(saved[part])
                                for part, empty in self.results.items()}
                check_rows(saved["rows"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} is not a readable file of results: delete it or choose "
                            f"another --out ({error})") from error
        refuse_difference(self.path, self.results["config"], json.loads(config))

    def tie_to_base(self, task: Task, number: int, base: GPT) -> None:
        """Note the checksum of a base's weights. Raises UserError if rows are those of another."""
        name = f"{task.name}-base{number}.pt"
        weights = b"".join(each.cpu().numpy().tobytes() for each in base.state_dict().values())
        checksum = zlib.crc32(weights)
        if self.results["bases"].setdefault(name, checksum) != checksum:
            raise UserError(f"the rows in {self.path} were made with another {name}: put that one "
                            "back, or choose a new --out")

    def latents_path(self, task: Task, method: Method, number: int, seed: int) -> Path:
        name = f"{task.name}-base{number}-{method.placement}-seed{seed}.pt"
        return self.path.parent / "latents" / name

    def has(self, task: Task, method: str, number: int, seed: int) -> bool:
        key = (task.name, method, number, seed)
        return any(tuple(row[part] for part in ("task", "method", "base", "seed")) == key
                   for row in self.results["rows"])

    def tune_and_test(self, base: GPT, task: Task, method: Method, number: int, seed: int) -> GPT:
        """Add the rows of one method and seed; returns the model that was tested."""
        started = time.perf_counter()
        model, latents = base, LatentTokens(Placement(), base.config.n_embd).to(base.device)
        trials = None
        if method.full or method.placement.groups:
            model, latents, trials = tune_best(base, task, method, seed, self.tuning)
        if method.placement.groups:
            write(self.latents_path(task, method, number, seed), latents.save)
        rows = test(model, latents, task, method, seed, self.tuning)
        self.add(rows, number, started, trials)
        return model

    def add(self, rows: list[dict], number: int, started: float,
            trials: dict | None = None) -> None:
        """Keep the rows of one method, base and seed, and what its tuning tried, at once."""
        rows = [{"base": number} | row for row in rows]
        if trials is not None:
            key = {part: rows[0][part] for part in ("task", "method", "base", "seed")}
            self.results["tuning"].append(key | trials)
        stage = "{task}, base {base}, {method}, seed {seed}".format(**rows[0])
        self.results["rows"] += rows
        self.results["seconds"][stage] = round(time.perf_counter() - started, 1)
        text = json.dumps(self.results, indent=1, allow_nan=False)
        write(self.path, lambda file: file.write_text(text))
        tqdm.write(f"{stage}: {self.results['seconds'][stage]:.0f} s")

    def print_table(self, task: Task) -> None:
        """Means over lengths and seeds, one line for each method, if there is one."""
        splits = {"ID": task.id_lengths, "OOD": task.ood_lengths, "far OOD": task.far_lengths}
        rows = [row for row in self.results["rows"] if row["task"] == task.name]
        if not rows:
            return
        print(f"\n{task.name}, {task.metrics[0]}".ljust(39), *(f"{name:>8}" for name in splits))
        for method in dict.fromkeys(row["method"] for row in rows):
            means = [fmean([row[task.metrics[0]] for row in rows if row["method"] == method
                            and row["length"] in lengths] or [nan]) for lengths in splits.values()]
            print(f"{method:38}", *(f"{mean:8.2f}" for mean in means))


# --------------------------------------------------------------------------------- the command line

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
    add("--steps", type=int, default=TuneConfig.steps, metavar="N",
        help=f"of tuning; default: {TuneConfig.steps}")
    add("--bases", type=int, nargs="+", default=[0], metavar="N", help="seeds of pre-training")
    add("--device", default=devices[0], choices=devices, help=f"default: {devices[0]}")
    add("--out", type=Path, metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--fast", action="store_true", help="a try-out: ignores --steps, means nothing")
    return parser


def pretraining_of(task: Task, base: int, fast: bool) -> PretrainConfig:
    return PretrainConfig(seed=base, **FAST_PRETRAIN if fast else PRETRAINING.get(task.name, {}))


def plan(args: argparse.Namespace) -> dict[Task, list[Method]]:
    """The methods to compare in each task. Raises UserError on bad arguments."""
    if min(args.seeds, args.steps) < 1 or min(args.bases) < 0:
        raise UserError("--seeds and --steps must be positive, --bases not negative")
    methods = {}
    for task in TASKS.values() if args.task == "all" else [TASKS[args.task]]:
        names = args.methods or METHODS.get(task.name, METHODS["generation"])
        names = ["base", "instruction", "reminders", *names]
        methods[task] = list(dict.fromkeys(map(Method.parse, names)))
    return methods


def count_stages(methods: dict[Task, list[Method]], args: argparse.Namespace) -> int:
    """Each base is a stage, and so is each method and seed on it."""
    return sum(len(args.bases) * (1 + args.seeds * len(methods[task])) for task in methods)


def real_minutes(seconds: dict[str, float], methods: dict[Task, list[Method]],
                 args: argparse.Namespace) -> float:
    """What the command takes without --fast, from the seconds of its stages with it."""
    total = 0.0
    for task, number in product(methods, args.bases):
        stage = f"{task.name}, base {number}, "
        total += (seconds[stage + "pre-training"]
                  * pretraining_of(task, number, False).steps / FAST_PRETRAIN["steps"])
        for method, seed in product(methods[task], range(args.seeds)):
            took = seconds[stage + f"{method}, seed {seed}"]
            testing = min(took, seconds[stage + "base, seed 0"])
            total += testing * TESTING + (took - testing) * args.steps / FAST_TUNE["steps"]
    return total / 60


def run(args: argparse.Namespace) -> None:
    """Pre-train, freeze, tune, test, print."""
    tuning = TuneConfig(steps=args.steps)
    if args.fast:
        tuning = replace(tuning, **FAST_TUNE)
    methods = plan(args)
    folder = args.out or Path("runs/fast" if args.fast else "runs/default")
    failures = []
    with only_writer(folder):
        record = Run(folder, tuning)
        with tqdm(total=count_stages(methods, args), desc="stages", leave=False) as stages:
            for task, number in product(methods, args.bases):
                started = time.perf_counter()
                try:
                    base = pretrain(task, pretraining_of(task, number, args.fast),
                                    folder / f"{task.name}-base{number}.pt", args.device)
                except Unskilled as failure:
                    failures.append(str(failure))
                    stages.update(1 + args.seeds * len(methods[task]))
                    continue
                record.results["seconds"].setdefault(  # of the command that finished it
                    f"{task.name}, base {number}, pre-training", time.perf_counter() - started)
                record.tie_to_base(task, number, base)
                stages.update()
                failures += compare(record, base, task, methods[task], number, args.seeds, stages)
        for task in methods:
            record.print_table(task)
    if record.path.exists():
        print(f"\nwrote {record.path}" + "; with --fast the numbers mean nothing" * args.fast)
    if failures:
        raise UserError("; ".join(failures))
    if args.fast:
        minutes = real_minutes(record.results["seconds"], methods, args)
        print(f"without it this takes some {minutes:.0f} minutes on this machine")


def compare(record: Run, base: GPT, task: Task, methods: list[Method], number: int,
            seeds: int, stages: tqdm) -> list[str]:
    """Tune and test all that has no rows yet. Returns what went wrong, a line for each tuning."""
    failures = []
    for seed, method in product(range(seeds), methods):
        if not record.has(task, str(method), number, seed):
            try:
                record.tune_and_test(base, task, method, number, seed)
            except Diverged as failure:
                failures.append(str(failure))
        stages.update()
    return failures


@contextmanager
def one_line_exits(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Let a command end with one line, and no traceback, after a UserError or Ctrl-C."""
    try:
        yield
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on from what is finished\n")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    with one_line_exits(parser):
        run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
