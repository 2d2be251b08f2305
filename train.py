"""Pre-train a small GPT, freeze it, tune nothing but a handful of latent tokens, and compare.

    python train.py                           the main job
    python train.py --task all --bases 0 1    all tasks, each on two bases: seeds of pre-training
    python train.py --methods Comma_2 8_2     more placements, on the same base

A run lives in one folder, --out: bases, latents, and results.jsonl, to which each result adds a
line. What has a line there is not done again. On a busy machine set OMP_NUM_THREADS=1.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress
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

from latent_tokens import Batch, LatentTokens, Placement, generate, make_batch, response_loss
from model import GPT, GPTConfig, UserError, weights_checksum
from tasks import (ALPHABET, END, TASKS, TOKEN_ID, Example, Task, check, checksum, decode, draw,
                   draw_examples, encode, pretraining_batch, random_source, text_checksum)


@dataclass(frozen=True)
class PretrainConfig:
    steps: int = 800
    short: tuple[int, int] = (8, 110)  # sequences and tokens of a batch in the first steps,
    short_until: float = 0.5  # up to this share of them
    long: tuple[int, int] = (5, 352)  # and afterwards
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part (0 ... 1) of the steps, over which the rates fall to zero
    model: GPTConfig = GPTConfig(vocab_size=len(ALPHABET))


@dataclass(frozen=True)
class TuneConfig:
    """The budget of one tuning, the same for every method, and that of its test."""
    steps: int = 300
    batch_size: int = 16  # examples per step, all of one in-distribution length
    starts: tuple[float, ...] = (0.5, 1.0, 2.0)  # learning rates: at each of them one begins;
    drop_at: tuple[float, ...] = (1 / 6, 1 / 2)  # at each of these shares of the steps one goes
    weight_decay: float = 0.05
    warmup: int = 10  # steps
    decay: float = 1.0  # the last part of the steps, over which the rates fall to zero
    validation_examples: int = 256  # of in-distribution lengths; they decide which start goes
    test_examples: int = 128  # spread evenly over the test lengths


FAST_PRETRAIN = {"steps": 20, "warmup": 5}
FAST_TUNE = {"steps": 6, "warmup": 1, "validation_examples": 20, "test_examples": 22}
# Methods without latents: nothing is said; the rule's header, once; after every comma, too.
REFERENCES = ("base", "instruction", "reminders")


class Muon(torch.optim.Optimizer):
    """Momentum, made equally large in all directions. ``torch.optim.Muon`` does it in bfloat16 (20
    times as slow with AVX2 only), matrix by matrix; here those of a shape are one product."""

    @torch.no_grad()
    def step(self) -> None:
        group, shapes = self.param_groups[0], {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                shapes.setdefault(matrix.shape, {})[matrix] = matrix.grad.lerp(momentum, 0.95)
        for (height, width), stack in shapes.items():
            for matrix, update in zip(stack, orthogonalize(torch.stack([*stack.values()]))):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=group["lr"] * max(1.0, height / width) ** 0.5)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Singular values of (n, a, b) to about 1, by five steps of Newton and Schulz (Jordan et al.
    2024). Each is a polynomial of x @ x.T times x; these factors are multiplied first, x once."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram, product = x @ x.mT, torch.eye(x.shape[1], device=x.device)
    for _ in range(5):
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        factor.diagonal(dim1=1, dim2=2).add_(3.4445)
        gram, product = factor @ gram @ factor, factor @ product
    return product @ x


def make_optimizers(model: GPT, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and head."""
    matrices = [each for each in model.blocks.parameters() if each.ndim == 2]
    others = [each for each in model.parameters() if each not in set(matrices)]
    return [Muon(matrices, {"lr": config.muon_lr, "weight_decay": 0.0}),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def descend(loss: Tensor, optimizers: list[torch.optim.Optimizer], step: int, config) -> float:
    """A step down the loss, which is returned. Rates go up in ``warmup``, down in ``decay``."""
    share = min(1.0, (step + 1) / max(1, config.warmup),
                (config.steps - step) / max(1, config.decay * config.steps))
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def pretrain(task: Task, config: PretrainConfig, seed: int, device: str) -> tuple[GPT, list]:
    """A base, and its loss at each step."""
    torch.manual_seed(seed % 2 ** 63)  # it takes no larger ones
    model, losses = GPT(config.model).to(device), []
    optimizers = make_optimizers(model, config)
    rng = random_source(f"{task.name}/pretrain", seed)
    bar = tqdm(range(config.steps), "pre-training", leave=False, disable=None)
    for step in bar:
        read = step / config.steps  # the share of the text that has been read
        shape = config.short if read < config.short_until else config.long
        token_ids, targets = pretraining_batch(task, rng, read, *shape)  # each (B, N)
        position_ids = torch.arange(shape[1], device=device).expand(shape)
        logits = model(model.embed(token_ids.to(device)), position_ids)  # (B, N, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
        losses.append(descend(loss, optimizers, step, config))
        bar.set_postfix(loss=losses[-1], refresh=False)
    return model, losses


def curve(losses: list[float]) -> list[float | None]:
    """Every tenth, for a file. None: not finite."""
    return [round(loss, 4) if isfinite(loss) else None for loss in losses[::10]]


def frozen_base(task: Task, config: PretrainConfig, seed: int, path: Path, device: str) -> GPT:
    """The base in a file, which is trained and written first where there is none."""
    settings = asdict(config) | {"text": text_checksum(task)}
    if not path.exists():
        model, losses = pretrain(task, config, seed, device)
        model.notes = {"pretraining": settings, "losses": curve(losses)}
        model.save(path, replace=False)  # if another command was faster, its base is that of both
    base = GPT.load(path)
    given = base.notes.get("pretraining", {})
    if others := [name for name in settings if given.get(name) != settings[name]]:
        raise UserError(f"{path} was made with other {', '.join(others)}: choose a new --out")
    return base.to(device)


def to_batch(placement: Placement, examples: list[Example], device=None) -> Batch:
    """Queries with their true responses."""
    return make_batch(placement, [encode(example.query) for example in examples],
                      [encode(example.response) for example in examples], device)


class Start:
    """One start of a tuning (no placement): latents, with vectors and a rate of their own."""

    def __init__(self, base: GPT, placement: Placement, rng: torch.Generator, lr: float, config):
        self.model, self.latents = base, LatentTokens(placement, base.config.n_embd).to(base.device)
        self.latents.initialize(base.token_embedding, rng)
        defaults = {"lr": lr, "weight_decay": config.weight_decay}
        self.optimizer = Muon(self.latents.parameters(), defaults)
        self.losses = []


@torch.no_grad()
def ranked(starts: list[Start], validation: Batch) -> list[Start]:
    """By validation loss, the best first, and last those whose loss is not finite."""
    for start in starts:
        start.validation_loss = response_loss(start.model, start.latents, validation).item()
    return sorted(starts, key=lambda one: (not isfinite(one.validation_loss), one.validation_loss))


@torch.no_grad()
def warn_of_first_tokens(start: Start, batch: Batch) -> None:
    """A comma's latents cannot announce the comma: if a response begins with one, and no other
    latent stands before it, the model has to write it by itself."""
    first = replace(batch, read_slots=batch.read_slots[:, :1], targets=batch.targets[:, :1])
    loss = response_loss(start.model, start.latents, first).item()
    placement, query = start.latents.placement, batch.sources[:, :first.read_slots.min() + 1]
    if loss > 1.0 and (query >= placement.total).all():
        print(f"{placement}: no latent stands before a response's first token, whose loss stays at "
              f"{loss:.1f}: end the query with a separator, or add End_1", file=sys.stderr)


def tune(base: GPT, task: Task, placement: Placement, seed: int, config: TuneConfig,
         begin: type[Start] = Start) -> tuple[Start, dict]:
    """Train latents on in-distribution lengths: several starts, of which the worst goes at each
    of ``drop_at``. Returns the best, and for its row how all of them went."""
    examples = draw_examples(task, task.id_lengths, "validation", seed, config.validation_examples)
    validation = to_batch(placement, examples, base.device)
    vectors = torch.Generator().manual_seed(seed % 2 ** 63)  # each start draws its own
    starts = going = [begin(base, placement, vectors, lr, config) for lr in config.starts]
    drops = [max(1, round(share * config.steps)) for share in config.drop_at]
    rng = random_source(f"{task.name}/tune", seed)
    bar = tqdm(range(config.steps), f"tuning {placement}", leave=False, disable=None)
    for step in bar:
        if step in drops and len(going) > 1:
            going = ranked(going, validation)[:-1]
        length = rng.choice(task.id_lengths)
        examples = [draw(task, length, "tune", rng) for _ in range(config.batch_size)]
        batch = to_batch(placement, examples, base.device)
        for start in going:
            loss = response_loss(start.model, start.latents, batch)
            start.losses.append(descend(loss, [start.optimizer], step, config))
        bar.set_postfix(loss=going[0].losses[-1], refresh=False)
    chosen = ranked(going, validation)[0]
    warn_of_first_tokens(chosen, validation)
    return chosen, {"start": starts.index(chosen), "starts": [
        {"lr": lr, "losses": curve(one.losses), "validation_loss": curve([one.validation_loss])[0]}
        for lr, one in zip(config.starts, starts)]}


def answers(base: GPT, latents: LatentTokens, task: Task, method: str,
            examples: list[Example]) -> list[str]:
    """The generated text for each example, without headers: ``instruction`` has that of the rule
    before the query, ``reminders`` after each comma, too."""
    opening = task.instruction * (method in ("instruction", "reminders"))
    comma = "," + task.reminder * (method == "reminders")

    def overrule(token_ids: list[int], choice: int) -> int:  # after a comma spell the reminder
        recent = decode(token_ids[::-1][:len(comma) - 1])  # the latest first
        return TOKEN_ID[comma[1 + recent.index(",")]] if "," in recent else choice

    asked = [Example(opening + query.replace(",", comma), response.replace(",", comma))
             for query, response in examples]
    written = generate(base, latents, [encode(each.query) for each in asked],
                       max(len(each.response) for each in asked), TOKEN_ID[END], overrule)
    texts = [decode(token_ids if END in each.response else token_ids[:len(each.response)])
             for each, token_ids in zip(asked, written)]
    return [text.replace(comma, ",") for text in texts]


def test(base: GPT, latents: LatentTokens, task: Task, method: str, seed: int,
         config: TuneConfig) -> dict:
    """Mean scores at each length, and the number of latents in the longest example."""
    examples = draw_examples(task, task.test_lengths, "test", seed, config.test_examples)
    scores = {}
    for example, text in zip(examples, answers(base, latents, task, method, examples)):
        for length, score in task.score(example, text).items():
            scores.setdefault(int(length), []).append(score)
    longest = to_batch(latents.placement, examples[-1:])
    return {"lengths": list(scores),
            "accuracy": [fmean(each.accuracy for each in values) for values in scores.values()],
            "exact": [fmean(each.exact for each in values) for values in scores.values()],
            "inserted": longest.sources.shape[1] - longest.token_ids.shape[1]}


RESULTS = "results.jsonl"
KEY = ("task", "base", "method", "seed", "tuning", "pretraining", "task_checksum", "base_checksum")


def key(row: dict) -> str:
    """What a result is the result of. 1 and 1.0 are the same."""
    names = json.dumps({name: row[name] for name in KEY}, sort_keys=True)
    return json.dumps(json.loads(names, parse_int=float))


def read_results(path: Path) -> list[dict]:
    """The results in a file. Incomplete lines are skipped, with a message."""
    text, rows = path.read_text(encoding="utf-8-sig", errors="replace"), []
    lines = [line for line in text.splitlines() if line]
    for line in lines:
        with suppress(ValueError, LookupError, TypeError, AttributeError):  # half a line, or no row
            json.dumps(row := json.loads(line), allow_nan=False)  # NaN, 1e999: ValueError
            if key(row) and split_means(row, "accuracy") and split_means(row, "exact"):
                rows.append(row)
    if skipped := len(lines) - len(rows):
        print(f"{path}: skipped {skipped} incomplete lines", file=sys.stderr)
    return rows


def append_result(path: Path, row: dict) -> None:
    """Add a line in one write, so that commands cannot mix theirs. Half a line may precede it."""
    cut_off = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with open(path, "a", buffering=2 ** 20) as file:
        file.write("\n" * cut_off + json.dumps(row, allow_nan=False) + "\n")


def split_means(row: dict, metric: str) -> dict[str, float]:
    """The mean of a result over the lengths of each split."""
    values = list(zip(row["lengths"], row[metric], strict=True))
    return {split: fmean([value for length, value in values if first <= length <= last] or [nan])
            for split, (first, last) in row["splits"].items()}


def about(task: Task, seed: int, base: GPT) -> dict:
    """What all results on a base have in common."""
    return {"task": task.name, "base": seed, "base_checksum": weights_checksum(base),
            "task_checksum": checksum(task), "pretraining": base.notes["pretraining"],
            "splits": task.splits, "device": str(base.device), "torch": torch.__version__,
            "threads": torch.get_num_threads()}


def complete(row: dict, base: GPT, task: Task, folder: Path, config: TuneConfig) -> dict:
    """Tune and test what a row names, and append the row to the results."""
    started, method, seed = time.perf_counter(), row["method"], row["seed"]
    latents, notes = LatentTokens(Placement(), base.config.n_embd).to(base.device), {}
    if method not in REFERENCES:
        tuned, notes = tune(base, task, Placement.parse(method), seed, config)
        latents = tuned.latents
        row["latents"] = "latents/{task}-base{base}-{method:.99}-seed{seed}.pt".format(**row)
        latents.save(folder / row["latents"])
    row |= test(base, latents, task, method, seed, config)
    row |= {"trained": latents.vectors.numel(), "vectors_checksum": weights_checksum(latents),
            "seconds": round(time.perf_counter() - started, 1), **notes}
    append_result(folder / RESULTS, row)
    return row


def run(args: argparse.Namespace) -> None:
    """Pre-train and freeze each base; compare the methods on it, seed by seed."""
    tuning = TuneConfig(**FAST_TUNE if args.fast else {})
    folder = Path(args.out or ("runs/fast" if args.fast else "runs/default"))
    methods, configs = {}, {}
    for task in TASKS.values() if args.task == "all" else [TASKS[args.task]]:
        names = args.methods or task.claim.baselines + task.claim.proposed
        methods[task] = [*REFERENCES, *dict.fromkeys(str(Placement.parse(name)) for name in names)]
        configs[task] = PretrainConfig(**task.pretraining | (FAST_PRETRAIN if args.fast else {}))
        check(task, show=args.fast)
    (folder / "latents").mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).touch()
    finished = {key(row): row for row in read_results(folder / RESULTS)}
    for task, base_seed in product(methods, dict.fromkeys(args.bases)):
        path, metrics = folder / f"{task.name}-base{base_seed}.pt", task.claim.metrics
        base = frozen_base(task, configs[task], base_seed, path, args.device)
        shared = about(task, base_seed, base) | {"tuning": asdict(tuning)}
        for seed in dict.fromkeys(args.seeds):
            title = f"\n{task.name}, base {base_seed}, seed {seed}: {', '.join(metrics)}"
            print(f"{title:44}", *(f"{split:>14}" for split in task.splits), flush=True)
            for method in methods[task]:
                row = shared | {"method": method, "seed": seed}
                row = finished.get(key(row)) or complete(row, base, task, folder, tuning)
                means = zip(*(split_means(row, metric).values() for metric in metrics))
                cells = [", ".join(f"{mean:.2f}" for mean in split) for split in means]
                print(f"{method:44}", *(f"{cell:>14}" for cell in cells), flush=True)
    print(f"\nwrote {folder / RESULTS}" + "; with --fast the numbers mean nothing" * args.fast)


def command(work: Callable, parser: argparse.ArgumentParser, arguments: list[str] | None) -> None:
    """Parse and work. A mistake or Ctrl-C ends with one line and no traceback."""
    try:
        work(parser.parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as in ``| head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(1)
    except (UserError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; what is finished is kept\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("train.py", argparse.SUPPRESS, __doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    devices = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()] + ["cpu"]
    add("--task", default="generation", choices=[*TASKS, "all"], help="default: generation")
    add("--methods", nargs="+", metavar="M", help="placements; default: the task's")
    add("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of tuning and test")
    add("--bases", type=int, nargs="+", default=[60], metavar="N", help="seeds; default: 60")
    add("--device", default=devices[0], choices=devices, help=f"default: {devices[0]}")
    add("--out", metavar="DIR", help="default: runs/default (--fast: runs/fast)")
    add("--fast", action="store_true", help="a try-out, which means nothing")
    command(run, parser, arguments)


if __name__ == "__main__":
    main()
