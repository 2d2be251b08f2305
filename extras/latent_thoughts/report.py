"""The file of results, and the tables made of it.

The file is only appended to: one JSON object a line for each trained model and seed, with all that
it depends on inside. A line with other settings, or of other text, belongs to another experiment.

A cell of a table is the mean over seeds ± sd; figures are nats per character where a column does
not say otherwise. A claim is a difference of two figures, paired by seed (each seed is a training
of its own, on text of its own), with Student's 95 % interval of its mean:

    reproduced      the interval lies above zero, and at least nine seeds of ten do
    ordering only   the mean lies above zero
    not reproduced  else
"""

from collections.abc import Callable
from dataclasses import asdict
import json
from pathlib import Path
from statistics import fmean, stdev
import sys

from extras.latent_thoughts.measure import PREFIXES, PROBES
from extras.latent_thoughts.model import VARIANTS, Config
from extras.latent_thoughts.text import text_checksum
from latent_tokens import UserError

# Student's t for 95 % and 2, 3, ... 10 seeds; the last one is wide enough for more.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
FIGURES = {"model", "seed", "parameters", "checks", "bounds", "probe", "one rule", "samples",
           "few-shot", "continued", "ideal", "minutes"}

Runs = dict[str, dict[int, dict]]  # by model and seed
Figure = Callable[[dict], float]  # of a run


# ----------------------------------------------------------------------------------- the file

def experiment(config: Config) -> dict:
    """What the runs of one experiment have in common."""
    return {"config": asdict(config),
            "text_checksum": text_checksum(config.equations, config.results)}


def run_on(line: str) -> dict | None:
    """None where it is no whole result, as half a line after a power cut."""
    try:
        run = json.loads(line)
    except ValueError:
        return None
    return run if isinstance(run, dict) and FIGURES <= run.keys() else None


def read(path: Path, config: Config) -> Runs:
    """The runs of this experiment, in the order of VARIANTS and of seeds."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [run_on(line) for line in text.split("\n") if line.strip()]
    if None in lines:
        print(f"{path}: skipped {lines.count(None)} lines, no whole results", file=sys.stderr)
    ours, runs = experiment(config), {model: {} for model in VARIANTS}
    for run in filter(None, lines):
        if ours.items() <= run.items() and run["model"] in runs:
            runs[run["model"]].setdefault(run["seed"], run)
    return {model: dict(sorted(seeds.items())) for model, seeds in runs.items() if seeds}


# ----------------------------------------------------------------------------------- the tables

def cell(seeds: dict[int, dict], figure: Figure, digits: int = 3) -> str:
    """``0.931 ± 0.020``"""
    values = [figure(run) for run in seeds.values()]
    text = f"{fmean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def ideal_cell(runs: Runs, figure: Figure, digits: int = 3) -> str:
    """The same for an ideal reader, whose figures stand beside those of every model."""
    return cell(next(iter(runs.values())), lambda run: figure(run["ideal"]), digits)


def table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |"
                     for cells in (heads, ["---"] * len(heads), *lines))


def ideal_table(runs: Runs) -> str:
    lines = [[name, ideal_cell(runs, lambda ideal: ideal[name], 1),
              ideal_cell(runs, lambda ideal: ideal[name] / ideal["characters"])]
             for name in ("rule known", "ideal", "no memory")]
    return table(["reader", "nats of a document", "of a character"], lines)


def training_table(runs: Runs) -> str:
    """Bounds at points of training; NLL and KL of the last of them; minutes of training alone."""
    lines, heads = [], []
    for model, seeds in runs.items():
        first = next(iter(seeds.values()))
        heads = [f"{check['sequences']:,}" for check in first["checks"]]
        early = [f"{fmean(run['checks'][point]['bound'] for run in seeds.values()):.3f}"
                 for point in range(len(heads) - 1)]
        last = [cell(seeds, lambda run: run["checks"][-1][part]) for part in ("bound", "nll", "kl")]
        lines.append([model, f"{first['parameters']:,}", *early, *last,
                      cell(seeds, lambda run: run["minutes"], 1)])
    return table(["bound after sequences", "parameters", *heads, "of which NLL", "KL", "minutes"],
                 lines)


def inference_table(runs: Runs) -> str:
    lines = [[model, steps, *(cell(seeds, lambda run: run["bounds"][steps][part])
                              for part in ("nll", "kl", "bound", "weighted"))]
             for model, seeds in runs.items() for steps in next(iter(seeds.values()))["bounds"]]
    return table(["model", "fast steps", "NLL", "KL", "bound", "importance-weighted"], lines)


def probe_table(runs: Runs) -> str:
    lines = [[model, *(cell(seeds, lambda run: run["probe"][part], 2) for part in PROBES)]
             for model, seeds in runs.items()]
    ideal = ideal_cell(runs, lambda ideal: ideal["probe"], 2)
    return table(["accuracy of a linear probe", *PROBES],
                 [*lines, ["chance", "0.02", "0.33", "0.33", "0.17"], ["ideal", ideal, "", "", ""]])


def few_shot_table(runs: Runs) -> str:
    def after(equations: int) -> Figure:
        return lambda figures: figures["few-shot"][str(equations)]

    lines = [[model, *(cell(seeds, after(equations), 2) for equations in PREFIXES),
              cell(seeds, lambda run: run["one rule"], 2)] for model, seeds in runs.items()]
    ideal = [ideal_cell(runs, after(equations), 2) for equations in PREFIXES]
    return table(["rule-abiding equations", *(f"after {equations}" for equations in PREFIXES),
                  "from nothing, by the best rule"], [*lines, ["ideal", *ideal, "1.00"]])


# ----------------------------------------------------------------------------------- the claims

MEASURES: dict[str, Figure] = {
    "bound": lambda run: run["checks"][-1]["bound"],
    "share after 4": lambda run: run["few-shot"]["4"],
    "share after 4 less after 1": lambda run: run["few-shot"]["4"] - run["few-shot"]["1"],
    "share by the best rule": lambda run: run["one rule"],
}
CLAIMS = [  # of the abstract: what is compared, of which model, less that of which other one
    ("1 more inference steps: better sample efficiency", "bound", "few-steps", "thoughts"),
    ("2 inference steps in place of model size", "bound", "few-steps", "half-width"),
    ("3 better than a plain GPT of as many parameters", "bound", "plain", "thoughts"),
    ("3 and than one with a layer more", "bound", "plain-2", "thoughts"),
    ("4 few-shot: 4 equations are better than 1", "share after 4 less after 1", "thoughts", ""),
    ("4 few-shot grows with model size", "share after 4", "thoughts", "half-width"),
    ("4 few-shot grows with latent size", "share after 4", "thoughts", "half-z"),
    ("5 conditional generation, better than a plain GPT", "share after 4", "thoughts", "plain"),
    ("5 unconditional generation, better than a plain GPT", "share by the best rule",
     "thoughts", "plain"),
]


def judge(differences: list[float]) -> list[str]:
    """Mean, interval, how many lie above zero, and the verdict, for one difference a seed."""
    seeds, above = len(differences), sum(each > 0 for each in differences)
    if seeds < 3:
        return ["", "", f"{seeds} pairs", "too few seeds" if seeds else "out of reach here"]
    mean = fmean(differences)
    half = T_QUANTILE[min(seeds, 10) - 2] * stdev(differences) / seeds ** 0.5
    verdict = ("reproduced" if mean - half > 0 and above >= 0.9 * seeds else
               "ordering only" if mean > 0 else "not reproduced")
    return [f"{mean:+.3f}", f"{mean - half:+.3f} to {mean + half:+.3f}", f"{above} of {seeds}",
            verdict]


def claim_table(runs: Runs) -> str:
    lines = []
    for claim, name, ours, theirs in CLAIMS:
        mine, other = ({seed: MEASURES[name](run) for seed, run in runs.get(model, {}).items()}
                       for model in (ours, theirs))
        differences = [mine[seed] - other[seed] for seed in mine if seed in other]
        compared = f"{name}: {ours} - {theirs}" if theirs else f"{name}: {ours}"
        lines.append([claim, compared, *judge(differences if theirs else list(mine.values()))])
    return table(["claim", "compared", "difference", "95 % interval", "above zero", "verdict"],
                 lines)


# ----------------------------------------------------------------------------------- the report

def report(path: Path, config: Config) -> str:
    """All tables of an experiment, and what the first seed of each model wrote."""
    runs = read(path, config)
    if not runs:
        raise UserError(f"{path} has no results of these settings")
    parts = (ideal_table, training_table, inference_table, probe_table, few_shot_table, claim_table)
    texts = [part(runs) for part in parts]
    for model, seeds in runs.items():
        run = next(iter(seeds.values()))
        texts.append("\n".join([f"{model}, from nothing and continued:", "", "```",
                                *run["samples"], *run["continued"].values(), "```"]))
    return "\n\n".join(texts)
