"""Muon or AdamW for the latents, at four rates each: what does every pair give?

    python -m extras.optimizers runs/default --task generation --base 0 --methods Start_4 Comma_4

The rows join those of the run in its ``results.json``, under names such as ``Comma_4:AdamW-0.3``.
Weight decay is 0.05 throughout. Two groups of one placement are rows of one matrix, which Muon
pushes apart; so function specialization is worth a look with both:

    --task repetition --methods Start,Comma_2 Start_2+Comma_2
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
import time

from extras.controls import opened
from model import GPT
from tasks import TASKS, Task
from train import METHODS, Method, Run, one_line_exits, test, tune_best

RATES = {"Muon": (0.5, 1.0, 2.0, 4.0), "AdamW": (0.03, 0.1, 0.3, 1.0)}


def add_optimizer(run: Run, base: GPT, task: Task, method: Method, number: int, seed: int,
                  optimizer: str, lr: float) -> None:
    """The rows of one method, optimizer and rate, if they are not there yet."""
    method = replace(method, control=f"{optimizer}-{lr:g}")
    if run.has(task, str(method), number, seed):
        return
    started = time.perf_counter()
    tuning = replace(run.tuning, optimizer=optimizer, trials=((lr, 0.05),))
    model, latents, record = tune_best(base, task, method, seed, tuning)
    rows = test(model, latents, task, method, seed, run.tuning)
    run.add(rows, number, started, record)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.optimizers", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/default"))
    parser.add_argument("--task", default="generation", choices=TASKS)
    parser.add_argument("--base", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--methods", nargs="+", metavar="M", help="default: those of the task")
    args = parser.parse_args(arguments)
    with one_line_exits(parser):
        task = TASKS[args.task]
        methods = [Method.parse(name) for name in args.methods or METHODS[task.name]]
        with opened(args.folder, task, args.base) as (run, base):
            for method, (optimizer, rates) in product(methods, RATES.items()):
                for lr in rates:
                    add_optimizer(run, base, task, method, args.base, args.seed, optimizer, lr)


if __name__ == "__main__":
    main()
