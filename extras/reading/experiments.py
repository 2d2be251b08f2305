"""The rows of files of results, and which of them may be averaged.

A row is a line of ``results.jsonl`` (train.py). An edit may change a task, its settings or a base
and leave the name. So rows are averaged only where the checksum of the task and the settings of
tuning and pre-training agree, and a base is known by the checksum of its weights, too.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

from latent_tokens import UserError
from tasks import TASKS, Claim, Task
from train import RESULTS, key, read_results

Base = tuple[int, int]  # the seed of its pre-training, and the checksum of its weights


class Unknown(Task):
    claim = Claim((), (), ("exact", "accuracy", "forced"))  # the last: extras.smollm alone
    test_lengths = ()


@dataclass(frozen=True, eq=False)
class Experiment:
    """Rows of one task that may stand in one table, and be averaged."""

    task: str
    rows: list[dict]
    note: str = ""  # how it differs from the first experiment with this task

    @property
    def about(self) -> Task:
        """A variant such as ``echo-3`` that is not known is judged like ``echo``, and one of which
        nothing is known not at all."""
        return TASKS.get(self.task) or TASKS.get(self.task.partition("-")[0]) or Unknown()

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def lengths(self) -> list[int]:
        return sorted({length for row in self.rows for length in row["lengths"]})

    @property
    def splits(self) -> dict[str, list[int]]:
        """The tested lengths of each split, if there are any."""
        return {name: lengths for name, (first, last) in self.rows[0]["splits"].items()
                if (lengths := [each for each in self.lengths if first <= each <= last])}

    def by_base(self, method: str, metric: str, lengths: Sequence[int]) -> dict[Base, float]:
        """The mean over these lengths, then over tuning seeds, on each base. NaN is no score."""
        seeds = defaultdict(list)
        for row in self.rows:
            scores = zip(row["lengths"], row[metric], strict=True)
            tested = [score for length, score in scores if length in lengths]
            if row["method"] == method and tested and isfinite(fmean(tested)):
                seeds[row["base"], row["base_checksum"]].append(fmean(tested))
        return {base: fmean(values) for base, values in seeds.items()}

    def still_right(self, method: str, lengths: Sequence[int]) -> dict[Base, float]:
        """Of the answers that are right up to length k - 1, the share that is right at k, too: for
        k in these lengths, all rows of a base together."""
        before, after = defaultdict(float), defaultdict(float)
        for row in self.rows:
            exact = {0: 1.0} | {k: share for k, share in zip(row["lengths"], row["exact"])
                                if isfinite(share)}
            for k in lengths if row["method"] == method else ():
                if {k - 1, k} <= exact.keys():
                    before[row["base"], row["base_checksum"]] += exact[k - 1]
                    after[row["base"], row["base_checksum"]] += exact[k]
        return {base: after[base] / before[base] for base in before if before[base]}


def settings(row: dict) -> dict:
    """What must agree in rows that are averaged, by name."""
    base = dict(row.get("pretraining", {}))
    model = base.pop("model", {})
    return {"task": row["task"], "task_checksum": row["task_checksum"], **row["tuning"],
            **{f"pre-training {name}": value for name, value in base.items()}, **model}


def experiments(rows: list[dict]) -> list[Experiment]:
    """Rows apart by task and settings."""
    found = []
    for row in rows:
        mine = settings(row)
        home = next((each for each in found if settings(each.rows[0]) == mine), None)
        if home is None:
            same_task = (each.rows[0] for each in found if each.task == row["task"])
            first = settings(next(same_task, row))
            note = ", ".join(f"{name} {mine.get(name)} in place of {first.get(name)}"
                             for name in first | mine if mine.get(name) != first.get(name))
            home = Experiment(row["task"], [], note)
            found.append(home)
        home.rows.append(row)
    return found


def read(paths: list[Path]) -> list[dict]:
    """The rows of all files, each once; of a folder its ``results.jsonl``.

    Raises UserError where there are none, and where two lines of one key have different figures.
    """
    first = {}
    for path in paths:
        file = path / RESULTS if path.is_dir() else path
        rows = read_results(file) if file.exists() else []
        if not rows:
            raise UserError(f"{file} holds no results: python train.py --out FOLDER makes some")
        for row in rows:
            where, other = first.setdefault(key(row), (file, row))
            if any(row[part] != other[part] for part in ("lengths", "accuracy", "exact")):
                raise UserError("{task}, base {base}, {method}, seed {seed}: ".format(**row)
                                + f"lines of {where} and {file} differ: remove the wrong one")
    return [row for _, row in first.values()]
