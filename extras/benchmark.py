"""What latents cost in tuning and decoding, as ratios of times, each beside its ideal.

    python -m extras.benchmark

The model is that of train.py, untrained: what it writes plays no part. Each time is the least of
several. Start it on a quiet machine.
"""

import argparse
from collections.abc import Callable
from timeit import repeat

import torch

from extras.runs import plain_parser
from latent_tokens import LatentTokens, Placement, generate, response_loss
from model import GPT
from tasks import TASKS, draw_examples, encode
from train import Muon, PretrainConfig, TuneConfig, command, to_batch


def compare(what: str, function: Callable, other: Callable, ideal: str) -> None:
    seconds, others = (min(repeat(each, number=1)[1:]) for each in (function, other))  # one is warm
    print(f"{what:42}{seconds / others:8.2f}   {ideal:20}{seconds * 1e3:8.1f} ms")


def tuning(model: GPT, notation: str) -> None:
    """A step against one that tunes all weights."""
    latents = LatentTokens(Placement.parse(notation), model.config.n_embd)
    examples = draw_examples(TASKS["generation"], [3], "tune", 0, TuneConfig.batch_size)

    def step(trained: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.requires_grad_(trained is model)
        response_loss(model, latents, to_batch(latents.placement, examples)).backward()
        optimizer.step()
        trained.zero_grad()

    full, muon = torch.optim.AdamW(model.parameters(), 1e-9), Muon(latents.parameters(), 1e-9)
    compare(f"tuning step / all weights, {notation}", lambda: step(latents, muon),
            lambda: step(model, full), "2/3 and a little")


def decoding(model: GPT, notation: str, ideal: str) -> None:
    """32 x 216 tokens with latents, against as many without.

    An untrained model writes nothing but ``;``. So that is the comma here, and a reminder of eight
    characters after each makes items of nine, as in Generation.
    """
    comma, item = encode(";"), encode("44@47=83")
    without, latents = (LatentTokens(placement, model.config.n_embd) for placement in (
        Placement(), Placement.parse(notation, separators={"Comma": comma})))
    compare(f"decoding / without latents, {notation}",
            lambda: generate(model, latents, [item] * 32, 216, None, item, comma),
            lambda: generate(model, without, [item] * 32, 216, None, item, comma), ideal)


def measure(_: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = GPT(PretrainConfig.model)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'':42}{'ratio':>8}   ideal")
    for notation in ("Start_4", "Comma_4"):
        tuning(model, notation)
    for notation, slots in (("Start_4", "1.02"), ("8_2", "1.24"), ("Comma_4", "1.43")):
        decoding(model, notation, f"{slots} (slots)")


def main(arguments: list[str] | None = None) -> None:
    command(measure, plain_parser("benchmark", __doc__), arguments)


if __name__ == "__main__":
    main()
