"""python -m extras.latent_thoughts: train, measure and report; --help says how."""

import argparse
from dataclasses import fields
from pathlib import Path
import platform
import sys
import time

import torch

from extras import latent_thoughts
from extras.latent_thoughts.learning import train
from extras.latent_thoughts.measure import measure
from extras.latent_thoughts.model import FAST, VARIANTS, Config, parameters_of
from extras.latent_thoughts.report import experiment, read, report
from latent_tokens import UserError
from train import append_result, command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="extras.latent_thoughts", usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=latent_thoughts.__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=["thoughts", "plain", "plain-2", "no-z"], metavar="NAME",
        choices=[*VARIANTS, "all"],
        help=f"of {', '.join(VARIANTS)}, or all; default: the first 4")
    add("--seeds", type=int, default=1, metavar="N", help="train each with so many seeds")
    add("--first-seed", type=int, default=0, metavar="N", help="from 100 up to try things out")
    add("--out", type=Path, default=Path("runs/thoughts.jsonl"), metavar="FILE",
        help="default: %(default)s; what is finished there is not run again")
    add("--report", type=Path, metavar="FILE",
        help="print the tables of the results there that have the settings below; train nothing")
    add("--fast", action="store_true", help="a try-out: ignores all below, means nothing")
    for field in fields(Config)[1:]:  # all but reads: --models no-z
        add(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default,
            metavar=field.type.__name__.upper(), help=f"default: {field.default}")
    return parser


def run_one(model: str, config: Config, seed: int) -> dict:
    """One training and all its figures."""
    variant = VARIANTS[model](config)
    print(f"{model}, seed {seed}: {parameters_of(variant):,} parameters", flush=True)
    started = time.perf_counter()
    decoder, checks = train(variant, seed)
    trained = time.perf_counter()
    return {"model": model, "seed": seed, **experiment(config),
            "parameters": parameters_of(variant), "checks": checks,
            **measure(decoder, variant, seed), "minutes": (trained - started) / 60,
            "minutes measuring": (time.perf_counter() - trained) / 60,
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(), "torch": torch.__version__}


def train_missing(args: argparse.Namespace, config: Config) -> None:
    """Train and measure what the file of results does not have yet."""
    if args.seeds < 1 or not 0 <= args.first_seed < 2 ** 31:
        raise UserError("--seeds start at 1, and --first-seed at 0, below 2 ** 31")
    models = list(VARIANTS) if "all" in args.models else list(dict.fromkeys(args.models))
    for model in models:
        VARIANTS[model](config)  # are these settings possible for all of them?
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.open("a").close()  # and can results be written?
    finished = read(args.out, config)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for model in models:
            if seed not in finished.get(model, {}):
                append_result(args.out, run_one(model, config, seed))


def run(args: argparse.Namespace) -> None:
    settings = FAST if args.fast else {
        field.name: getattr(args, field.name) for field in fields(Config)[1:]}
    config = Config(**settings)
    if not args.report:
        train_missing(args, config)
    tables = report(args.report or args.out, config)
    sys.stdout.reconfigure(errors="replace")  # "±", on a terminal that has no such sign
    print(tables)


def main(arguments: list[str] | None = None) -> None:
    command(run, make_parser(), arguments)


if __name__ == "__main__":
    main()
