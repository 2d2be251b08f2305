"""What latent_thoughts.py measures on a trained model, and the tables made of it.

``run`` trains models and writes what ``measure`` says of each to a file; ``report`` makes Markdown
of such files. A cell of a table is the mean over seeds ± sd. The verdict on a claim is that of
claims.py, over seeds: each is a training of its own, on text of its own.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, fields, replace
import json
from pathlib import Path
import platform
from statistics import fmean, stdev
import time

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from extras.hidden_rules import (draw_documents, ideal_figures, ideal_probe, ideal_share,
                                 share_following, share_of_best_rule)
from extras.latent_thoughts import FAST, Config, Decoder, bound, infer_thoughts, to_ids, train
from extras.claims import Difference, interval
from latent_tokens import UserError
from tasks import decode, random_source
from train import refuse_difference, write

INFERENCE_STEPS = (0, 1, 4, 16, 64)
PREFIXES = (1, 2, 4)  # equations that z is inferred from, before a continuation of two more
PROBES = {"rule": slice(None), "first operation": 0, "second operation": 1, "modulus": 2}


# --------------------------------------------------------------------------------------- measuring

@torch.no_grad()
def continuations(decoder: Decoder, texts: list[str], z: Tensor, characters: int,
                  generator: torch.Generator) -> list[str]:
    """So many characters after each text (all of one length), sampled one by one."""
    token_ids = to_ids(texts)
    for _ in range(characters):
        probabilities = decoder.logits(token_ids, z)[:, -1].softmax(dim=-1)  # (B, V)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        token_ids = torch.cat([token_ids, drawn], dim=1)
    return [decode(row[-characters:]) for row in token_ids]


@torch.no_grad()
def features(decoder: Decoder, texts: list[str], config: Config, seed: int) -> Tensor:
    """What a probe reads: the posterior means; of a plain GPT, states of its last layer."""
    token_ids, generator = to_ids(texts), torch.Generator().manual_seed(seed)
    q, z = infer_thoughts(decoder, token_ids, config, config.fast_steps, generator)
    if config.reads:
        return q.mean.flatten(1)  # (B, L * M * Z)
    hidden = decoder.hidden(token_ids, z)  # (B, 1 + N, D)
    return torch.cat([hidden[:, -1], hidden.mean(dim=1)], dim=1)  # (B, 2 * D)


def linear_probe(inputs: Tensor, labels: list[str]) -> float:
    """Accuracy of a logistic regression on the second half, fitted to the first half.

    inputs: (documents, numbers), one row for each label.
    """
    names, half = sorted(set(labels)), len(labels) // 2
    targets = torch.tensor([names.index(label) for label in labels])
    inputs = (inputs - inputs[:half].mean(dim=0)) / (inputs[:half].std(dim=0) + 1e-6)
    layer = nn.Linear(inputs.shape[1], len(names))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(inputs[:half]), targets[:half])
        value = value + 1e-3 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (layer(inputs[half:]).argmax(dim=1) == targets[half:]).float().mean().item()


def measure(decoder: Decoder, config: Config, seed: int) -> dict:
    """All figures of a trained model on documents that no training saw, for one file of results."""
    generator, form = torch.Generator().manual_seed(seed), (config.equations, config.results)
    rules, texts = draw_documents("test", seed, config.held_out, *form)
    length, result = len(texts[0]), {"ideal": ideal_figures(texts) | {"characters": len(texts[0])}}
    result["bounds"] = {steps: bound(decoder, to_ids(texts), config, steps, seed)
                        for steps in (INFERENCE_STEPS if config.reads else (0,))}
    probed_rules, probed = draw_documents("probe", seed, config.probed, *form)
    inputs = features(decoder, probed, config, seed)
    result["probe"] = {part: linear_probe(inputs, [rule[place] for rule in probed_rules])
                       for part, place in PROBES.items()}
    result["ideal"]["probe"] = ideal_probe(probed[len(probed) // 2:])
    prior = torch.randn(len(texts), *decoder.z_shape, generator=generator)
    written = continuations(decoder, [""] * len(texts), prior, length, generator)
    result["one rule"] = fmean(map(share_of_best_rule, written))
    result |= {"samples": written[:3], "few-shot": {}, "continued": {}}
    result["ideal"]["few-shot"] = {}
    for equations in PREFIXES:
        size = length // config.equations
        prefixes = [text[:equations * size] for text in texts]
        _, z = infer_thoughts(decoder, to_ids(prefixes), config, config.fast_steps, generator)
        written = continuations(decoder, prefixes, z, 2 * size, generator)
        result["few-shot"][equations] = fmean(map(share_following, rules, written))
        result["continued"][equations] = f"{rules[0]}: {prefixes[0]} -> {written[0]}"
        result["ideal"]["few-shot"][equations] = ideal_share(
            rules, prefixes, random_source("ideal", seed))
    return result


# ---------------------------------------------------------------------------------------- the job

def parameters_of(config: Config) -> int:
    return sum(parameter.numel() for parameter in Decoder(config).parameters())


def plain_gpt(config: Config, n_layer: int) -> Config:
    """Without z and window; as narrow as a GPT with no fewer parameters can be."""
    plain = replace(config, reads=False, fast_steps=0, window=0, n_layer=n_layer,
                    n_embd=2 * config.n_head)
    while parameters_of(plain) < parameters_of(config):
        plain = replace(plain, n_embd=plain.n_embd + 2 * plain.n_head)
    return plain


def variants(config: Config) -> dict[str, Config]:
    """The models to compare.

    ``plain`` has as many layers as ``thoughts``, ``plain-2`` one more, and both as many parameters.
    The others differ in one thing each from ``thoughts``; ``no-z`` is the decoder by itself.
    """
    return {"thoughts": config, "plain": plain_gpt(config, config.n_layer),
            "plain-2": plain_gpt(config, config.n_layer + 1),
            "no-z": replace(config, reads=False, fast_steps=0),
            "few-steps": replace(config, fast_steps=max(1, config.fast_steps // 4)),
            "half-width": replace(config, n_embd=config.n_embd // 2),
            "half-z": replace(config, thoughts=max(1, config.thoughts // 2))}


def run(args: argparse.Namespace) -> str:
    """Train and measure what the file of results does not have yet; returns its report.

    Raises UserError on bad arguments, and on a file that cannot be read or has other settings.
    """
    config = Config(**FAST) if args.fast else Config(**{
        field.name: getattr(args, field.name) for field in fields(Config)[1:]})
    models = variants(config)
    chosen = list(models) if "all" in args.models else list(dict.fromkeys(args.models))
    if not set(chosen) <= set(models) or args.seeds < 1:
        raise UserError(f"--models are all or of {', '.join(models)}; --seeds must be positive")
    path = args.out or Path("runs/thoughts-fast.json" if args.fast else "runs/thoughts.json")
    results = {"config": asdict(config), "machine": platform.processor() or platform.machine(),
               "threads": torch.get_num_threads(), "torch": torch.__version__, "runs": []}
    if path.exists():
        results = read(path)
        refuse_difference(path, results["config"], asdict(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    finished = {(each["model"], each["seed"]) for each in results["runs"]}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for model in chosen:
            if (model, seed) not in finished:
                results["runs"].append(run_one(model, models[model], seed))
                write(path, lambda file: file.write_text(json.dumps(results, indent=1)))
    return report([path])


def run_one(model: str, config: Config, seed: int) -> dict:
    """One training and all its figures."""
    print(f"{model}, seed {seed}: {parameters_of(config):,} parameters", flush=True)
    started = time.perf_counter()
    decoder, checks = train(config, seed)
    trained = time.perf_counter()
    return {"model": model, "seed": seed, "checks": checks,
            "parameters": parameters_of(config), **measure(decoder, config, seed),
            "minutes": (trained - started) / 60,
            "minutes measuring": (time.perf_counter() - trained) / 60}


# --------------------------------------------------------------------------------------- reporting

def cell(values: list[float], digits: int = 3) -> str:
    """``0.931 ± 0.020``"""
    text = f"{fmean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |"
                     for cells in (heads, ["---"] * len(heads), *lines))


def read(path: Path) -> dict:
    """A file of results. Raises UserError on any other."""
    try:
        results = json.loads(path.read_text())
        if not all(each["checks"] and each["few-shot"] for each in results["runs"]):
            raise ValueError("a run without figures")
        return results
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is not a readable file of results: {error}") from error


class Results:
    """The runs of several files. Raises UserError where two are of one model and seed."""

    def __init__(self, paths: list[Path]):
        self.runs = {}
        for path in paths:
            for run in read(path)["runs"]:
                key = (run["model"], run["seed"])
                if key in self.runs:
                    raise UserError(f"{path}: {key} is in another file, too")
                self.runs[key] = run
        if not self.runs:
            raise UserError("no runs to report")
        self.models = list(dict.fromkeys(model for model, _ in self.runs))

    def values(self, model: str, figure: Callable[[dict], float]) -> dict[int, float]:
        """A figure of every run of a model, by seed."""
        return {seed: figure(run) for (name, seed), run in self.runs.items() if name == model}

    def cell(self, model: str, figure: Callable[[dict], float], digits: int = 3) -> str:
        return cell(list(self.values(model, figure).values()), digits)

    def ideal(self, figure: Callable[[dict], float], digits: int = 3) -> str:
        """The same for a perfect reader; its figures stand beside those of every model."""
        return self.cell(self.models[0], lambda run: figure(run["ideal"]), digits)


def ideal_table(results: Results) -> str:
    lines = [[name, results.ideal(lambda ideal: ideal[name], 1),
              results.ideal(lambda ideal: ideal[name] / ideal["characters"])]
             for name in ("rule known", "ideal", "no memory")]
    return table(["reader", "nats of a document", "of a character"], lines)


def training_table(results: Results) -> str:
    """Bounds at points of training; below them NLL + KL of the last one."""
    first = results.runs[results.models[0], min(seed for _, seed in results.runs)]
    points = range(len(first["checks"]))
    parameters = {model: run["parameters"] for (model, _), run in results.runs.items()}
    lines = [[model, f"{parameters[model]:,}",
              *(results.cell(model, lambda run: run["checks"][point]["bound"])
                for point in points),
              results.cell(model, lambda run: run["checks"][-1]["nll"]),
              results.cell(model, lambda run: run["checks"][-1]["kl"]),
              results.cell(model, lambda run: run["minutes"], 1)] for model in results.models]
    return table(["bound after sequences", "parameters",
                  *(f"{first['checks'][point]['sequences']:,}" for point in points),
                  "of which NLL", "KL", "minutes"], lines)


def inference_table(results: Results) -> str:
    lines = []
    for model in results.models:
        every = results.runs[next(key for key in results.runs if key[0] == model)]["bounds"]
        lines += [[model, steps, *(results.cell(model, lambda run: run["bounds"][steps][part])
                                   for part in ("nll", "kl", "bound", "weighted"))]
                  for steps in every]
    return table(["model", "fast steps", "NLL", "KL", "bound", "importance-weighted"], lines)


def probe_table(results: Results) -> str:
    lines = [[model, *(results.cell(model, lambda run: run["probe"][part], 2) for part in PROBES)]
             for model in results.models]
    ideal = results.ideal(lambda ideal: ideal["probe"], 2)
    return table(["accuracy of a linear probe", *PROBES],
                 [*lines, ["chance", "0.02", "0.33", "0.33", "0.17"], ["ideal", ideal, "", "", ""]])


def few_shot_table(results: Results) -> str:
    lines = [[model, *(results.cell(model, lambda run: run["few-shot"][str(equations)], 2)
                       for equations in PREFIXES),
              results.cell(model, lambda run: run["one rule"], 2)] for model in results.models]
    ideal = [results.ideal(lambda ideal: ideal["few-shot"][str(equations)], 2)
             for equations in PREFIXES]
    return table(["rule-abiding equations", *(f"after {equations}" for equations in PREFIXES),
                  "from nothing, by the best rule"], [*lines, ["ideal", *ideal, "1.00"]])


# ------------------------------------------------------------------------------------------ claims

def last_bound(run: dict) -> float:
    return run["checks"][-1]["bound"]


def few_shot(run: dict) -> float:
    return run["few-shot"]["4"]


CLAIMS = [  # of the abstract; the difference is that of the two figures, the first less the second
    ("1 more inference steps: better sample efficiency", "bound",
     ("few-steps", last_bound), ("thoughts", last_bound)),
    ("2 inference steps in place of model size", "bound",
     ("few-steps", last_bound), ("half-width", last_bound)),
    ("3 better than a plain GPT of as many parameters", "bound",
     ("plain", last_bound), ("thoughts", last_bound)),
    ("3 and than one with a layer more", "bound",
     ("plain-2", last_bound), ("thoughts", last_bound)),
    ("4 few-shot: 4 equations are better than 1", "share after 4 less after 1",
     ("thoughts", few_shot), ("thoughts", lambda run: run["few-shot"]["1"])),
    ("4 few-shot grows with model size", "share after 4",
     ("thoughts", few_shot), ("half-width", few_shot)),
    ("4 few-shot grows with latent size", "share after 4",
     ("thoughts", few_shot), ("half-z", few_shot)),
    ("5 conditional generation, better than a plain GPT", "share after 4",
     ("thoughts", few_shot), ("plain", few_shot)),
    ("5 unconditional generation, better than a plain GPT", "share by the best rule",
     ("thoughts", lambda run: run["one rule"]), ("plain", lambda run: run["one rule"])),
]


def claim_table(results: Results) -> str:
    """One line for each claim: what is compared, its difference over seeds, and the verdict.

    Out of reach here is what was not run.
    """
    lines = []
    for claim, figure, (ours, our_figure), (theirs, their_figure) in CLAIMS:
        mine, other = results.values(ours, our_figure), results.values(theirs, their_figure)
        pairs = {(seed, 0): mine[seed] - other[seed] for seed in mine if seed in other}
        compared = [claim, f"{figure}: {ours}" + f" - {theirs}" * (theirs != ours)]
        if len(pairs) < 3:
            verdict = "too few seeds" if pairs else "out of reach here"
            lines.append([*compared, "", "", f"{len(pairs)} pairs", verdict])
            continue
        difference = Difference(ours, theirs, pairs, baseline=0.0)
        low, high = interval(difference.values)
        lines.append([*compared, f"{fmean(difference.values):+.3f}", f"{low:+.3f} to {high:+.3f}",
                      f"{difference.above_zero} of {len(pairs)}", difference.verdict])
    return table(["claim", "compared", "difference", "95 % interval", "above zero", "verdict"],
                 lines)


def report(paths: list[Path]) -> str:
    """All tables, and what the first seed wrote. Raises UserError on other files."""
    results = Results(paths)
    parts = [ideal_table, training_table, inference_table, probe_table, few_shot_table, claim_table]
    texts = [part(results) for part in parts]
    for model in results.models:
        run = next(run for (name, _), run in results.runs.items() if name == model)
        texts.append("\n".join([f"{model}, from nothing and continued:", "", "```",
                                *run["samples"], *run["continued"].values(), "```"]))
    return "\n\n".join(texts)
