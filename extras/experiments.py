"""The rows of files of results, and which of them may be averaged.

A row is a line of ``results.jsonl`` (train.py). An edit may change a task, its settings or a base
and leave the name. So rows are averaged only where checksum of the task and settings agree, and a
base is known by the checksum of its weights, too.
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
import json
from pathlib import Path
from statistics import fmean

from latent_tokens import UserError
from tasks import TASKS, Claim, Task
from train import RESULTS, key, read_results

Base = tuple[int, int]  # the seed of its pre-training, and the checksum of its weights
Pair = tuple[Base, int]  # and a tuning seed


def base_of(row: dict) -> Base:
    return row["base"], row["base_checksum"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """Rows of one task that may stand in one table, and be averaged."""

    task: str
    rows: list[dict]
    note: str = ""  # how it differs from the first experiment with this task

    @property
    def about(self) -> Task:
        """A variant such as ``generation-0.1`` is judged like the task itself."""
        return TASKS.get(self.task) or TASKS.get(self.task.partition("-")[0]) or Task()

    @property
    def claim(self) -> Claim:
        return self.about.claim

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def bases(self) -> list[Base]:
        return list(dict.fromkeys(base_of(row) for row in self.rows))

    @property
    def lengths(self) -> list[int]:
        return sorted({length for row in self.rows for length in row["lengths"]})

    @property
    def splits(self) -> dict[str, list[int]]:
        """The tested lengths of each split, without the splits of which none was tested."""
        splits = {name: [length for length in self.lengths if first <= length <= last]
                  for name, (first, last) in self.rows[0]["splits"].items()}
        return {name: lengths for name, lengths in splits.items() if lengths}

    def observed(self, method: str, metric: str, lengths: Iterable[int]) -> dict[Pair, float]:
        """The mean over these lengths for each base and seed."""
        values = {}
        for row in self.rows:
            scores = zip(row["lengths"], row[metric], strict=True)
            tested = [score for length, score in scores if length in lengths]
            if row["method"] == method and tested:
                values[base_of(row), row["seed"]] = fmean(tested)
        return values


def settings(row: dict) -> dict:
    """What must agree in rows of one task that are averaged."""
    return {"task_checksum": row["task_checksum"], **row["tuning"]}


def changes(old: dict, new: dict) -> list[str]:
    """``["steps 600 in place of 300"]``"""
    return [f"{name} {new.get(name)} in place of {old.get(name)}" for name in old | new
            if new.get(name) != old.get(name)]


def experiments(rows: list[dict]) -> list[Experiment]:
    """Rows apart by task and settings.

    A method with a colon in its name, such as ``Comma_4:AdamW-0.3``, varies settings on purpose: it
    stands beside the methods of the same task whose settings are nearest.
    """
    plain = {(row["task"], json.dumps(settings(row))): settings(row) for row in rows
             if ":" not in row["method"]}

    def nearest(row: dict) -> dict:
        mine = settings(row)
        same = (each for (task, _), each in plain.items()
                if task == row["task"] and each["task_checksum"] == mine["task_checksum"])
        return min(same, key=lambda each: len(changes(each, mine)), default=mine)

    groups, taken, first = defaultdict(list), {}, {}
    for row in sorted(rows, key=lambda row: nearest(row) != settings(row)):  # variations last
        mine, home = settings(row), nearest(row)
        if taken.setdefault((row["task"], str(home), row["method"]), mine) != mine:
            home = mine  # the same name, but varied in another way
        groups[row["task"], json.dumps(home)].append(row)
    for task, home in groups:
        first.setdefault(task, json.loads(home))
    return [Experiment(task, mine, ", ".join(changes(first[task], json.loads(home))))
            for (task, home), mine in groups.items()]


def read(paths: list[Path]) -> list[dict]:
    """The rows of all files, each once; of a folder its ``results.jsonl``.

    Raises UserError where there are none, and where two lines of one key have different figures.
    """
    first = {}
    for path in paths:
        file = path / RESULTS if path.is_dir() else path
        try:
            rows = read_results(file)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        if not rows:
            raise UserError(f"{file} holds no results")
        for row in rows:
            where, other = first.setdefault(key(row), (file, row))
            if any(row[part] != other[part] for part in ("lengths", "accuracy", "exact")):
                raise UserError(f"{place(where, other)} and {place(file, row)} have the same key "
                                "and different figures: remove the wrong one")
    return [row for _, row in first.values()]


def place(file: Path, row: dict) -> str:
    """``results.jsonl, line 3``"""
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        with suppress(ValueError):
            if json.loads(line) == row:
                return f"{file}, line {number}"
