"""A run of train.py as the commands here see it: one base in its folder, and the results on it.

A result belongs to a base and a task only if it has the checksums of both, and a file of latents to
a result only if it has the checksum in that. So what is shown is never of another experiment.
"""

import argparse
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
import shlex
import sys
import time

import torch
import torch.nn.functional as F

from latent_tokens import LatentTokens, Placement, UserError
from model import GPT, weights_checksum
from tasks import TASKS, Task
from train import (FAST_PRETRAIN, REFERENCES, RESULTS, TuneConfig, about, append_result, key,
                   read_results, split_means)

DEFAULT, READY = Path("runs/default"), Path("docs/ready")  # the second is in the repository


def folder_of_run(name: str) -> Path:
    """A type for argparse: docs/ready stands in for runs/default until train.py has made it."""
    if Path(name) == DEFAULT and not any(path.stat().st_size for path in DEFAULT.glob(RESULTS)):
        print(f"{DEFAULT} has no results yet: this reads {READY}", file=sys.stderr)
        return READY
    return Path(name)


def plain_parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"extras.{command}", usage=argparse.SUPPRESS,
                                   description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def make_parser(command: str, description: str, folder: str = "folder") -> argparse.ArgumentParser:
    """What most commands have in common: which base of which run."""
    parser = plain_parser(command, description)
    add = parser.add_argument
    add(folder, type=folder_of_run, nargs="?" if folder == "folder" else None, default=str(DEFAULT))
    add("--task", default="generation", choices=TASKS)
    add("--base", type=int, default=60, metavar="N", help="the seed of its pre-training")
    add("--seed", type=int, default=0, metavar="N", help="of tuning and test")
    return parser


@dataclass(frozen=True)
class Run:
    folder: Path
    rows: list[dict]  # all results in the folder
    task: Task
    number: int  # of the base: the seed of its pre-training
    base: GPT

    @classmethod
    def open(cls, args: argparse.Namespace) -> "Run":
        """Raises UserError where train.py has not made such a base."""
        task, path = TASKS[args.task], args.folder / f"{args.task}-base{args.base}.pt"
        results = args.folder / RESULTS
        rows = read_results(results) if results.exists() else []
        if not path.exists():
            raise UserError(f"there is no {path}: make it with "
                            f"{train_command(args.folder, task, args.base)}")
        return cls(args.folder, rows, task, args.base, GPT.load(path))

    @cached_property
    def about(self) -> dict:
        return about(self.task, self.number, self.base)

    def new_row(self, method: str, seed: int, config: TuneConfig) -> dict:
        return self.about | {"method": method, "seed": seed, "tuning": asdict(config)}

    def row(self, method: str, seed: int) -> dict:
        """The newest result of a method, of any tuning settings. UserError says how to make one."""
        asked = self.new_row(method, seed, TuneConfig())
        for row in reversed(self.rows):
            if (key(row | {"tuning": {}}) == key(asked | {"tuning": {}})
                    and row["tuning"].keys() == asked["tuning"].keys()):  # of this version
                return row
        command = train_command(self.folder, self.task, self.number, seed)
        command += f" --methods {method}" * (method not in REFERENCES)
        command += " --fast" * (self.about["pretraining"].items() >= FAST_PRETRAIN.items())
        raise UserError(f"{self.folder / RESULTS} has no result of {method}, seed {seed}, on this "
                        f"{self.task.name}-base{self.number}.pt: make one with {command}")

    def tuning(self, seed: int, method: str = "base") -> TuneConfig:
        """The tuning settings of a result; by default those of train.py's last command."""
        return TuneConfig(**self.row(method, seed)["tuning"])

    def latents(self, placement: Placement, seed: int) -> LatentTokens:
        """The tuned latents of a result. Raises UserError if their file does not hold them."""
        row = self.row(str(placement), seed)
        path = self.folder / row["latents"]
        latents = LatentTokens.load(path, self.base.config.n_embd)
        if (latents.placement, weights_checksum(latents)) != (placement, row["vectors_checksum"]):
            raise UserError(f"{path} does not hold the latents of its line in {RESULTS}: remove "
                            "the line, and run train.py again")
        return latents

    def add(self, name: str, seed: int, config: TuneConfig, measure: Callable[[], dict]) -> None:
        """Append a result, unless it is there: what ``measure`` returns, as a row of this name."""
        row, started = self.new_row(name, seed, config), time.perf_counter()
        if key(row) in map(key, self.rows):
            return
        row |= {"trained": 0, "starts": [], "start": None, "vectors_checksum": 0} | measure()
        row["seconds"] = round(time.perf_counter() - started, 1)
        append_result(self.folder / RESULTS, row)
        self.rows.append(row)
        means = split_means(row, self.task.claim.metrics[0]).values()
        print("{task}, base {base}, {method}, seed {seed}, {seconds:.0f} s:".format(**row),
              *(f"{mean:.2f}" for mean in means), flush=True)


def positive(text: str) -> int:  # a type for argparse
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def train_command(folder: Path, task: Task, number: int, seed: int = 0) -> str:
    """What makes a base or result that is missing."""
    folder = DEFAULT if folder == READY else folder  # nothing is added to what git knows
    return (f"python train.py --out {shlex.quote(folder.as_posix())} --task {task.name} "
            f"--bases {number} --seeds {seed}")


def other_rules(task: Task) -> list[Task]:
    """The task with each other rule of its family as its target rule."""
    others = {rule: copy(task) for rule in task.rules if rule != task.target_rule}
    for rule, other in others.items():
        other.target_rule = rule
    return list(others.values())


CHANGES = ("random", "shuffled")


@dataclass(frozen=True)
class Control:
    """Tuned latents, changed or placed elsewhere (see controls.py). UserError: no control."""

    placement: Placement
    change: str  # one of CHANGES, or a placement

    def __post_init__(self):
        if self.change not in CHANGES:
            Placement.parse(self.change)
        elif self.change == "shuffled" and self.placement.total < 2:
            raise UserError(f"{self} is no control: there is nothing to shuffle")

    @classmethod
    def parse(cls, name: str) -> "Control":
        placement, _, change = name.partition(":")
        return cls(Placement.parse(placement), change)

    def __str__(self) -> str:
        return f"{self.placement}:{self.change}"

    def of(self, latents: LatentTokens, seed: int) -> LatentTokens:
        """What becomes of the tuned latents of this placement."""
        placement, vectors = self.placement, latents.vectors.detach()
        if self.change == "shuffled":
            vectors = vectors.roll(1, dims=0)
        elif self.change == "random":
            generator = torch.Generator().manual_seed((seed + 1_000_000) % 2 ** 63)  # no start's
            noise = torch.randn(vectors.shape, generator=generator)
            vectors = F.normalize(noise, dim=1) * vectors.norm(dim=1, keepdim=True)
        else:
            placement = Placement.parse(self.change)
        if placement.total > len(vectors):
            raise UserError(f"{placement} needs {placement.total} vectors, not {len(vectors)}")
        changed = LatentTokens(placement, vectors.shape[1])
        changed.vectors.data.copy_(vectors[:placement.total])
        return changed
