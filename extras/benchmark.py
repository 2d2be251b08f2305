"""Where the time goes, as ratios, each beside what it would ideally be.

    python -m extras.benchmark

The model is that of train.py, untrained: what it writes plays no part. Each time is the least of
several runs. Start it on a quiet machine.
"""

from collections.abc import Callable
from math import log
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_tokens import (AugmentedRow, LatentTokens, Placement, generate, make_batch,
                           response_logits, response_loss)
from model import GPT
from tasks import TASKS, draw_examples, encode, pretraining_batch, random_source
from train import Muon, PretrainConfig, TuneConfig, make_optimizers

GENERATION = TASKS["generation"]


def least_time(function: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the fastest run, after one to warm up."""
    function()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def show(what: str, ratio: float, ideal: str, detail: str = "") -> None:
    print(f"{what:44}{ratio:8.2f}   {ideal:22}{detail}")


def matrix_rate() -> float:
    """Floating-point operations a second of the machine's own matrix products, at our shapes."""
    x, weights = torch.randn(1760, 128), torch.randn(128, 512)
    return 2 * 1760 * 128 * 512 / least_time(lambda: [x @ weights for _ in range(10)]) * 10


def pretraining(model: GPT, config: PretrainConfig) -> None:
    """One step of 5 x 352 tokens against the bare matrix products in it."""
    rows, length = config.long
    token_ids, targets = pretraining_batch(GENERATION, random_source("bench", 0), 1.0, rows, length)
    position_ids = torch.arange(length).expand(rows, length)
    optimizers = make_optimizers(model, config)

    def step() -> None:
        logits = model(model.embed(token_ids), position_ids)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()

    matrices = sum(each.numel() for each in model.blocks.parameters() if each.ndim == 2)
    matrices += model.head.weight.numel()
    attention = 2 * model.config.n_layer * length * model.config.n_embd  # q k^T and weights v
    operations = 6 * rows * length * (matrices + attention)
    rate, seconds = matrix_rate(), least_time(step)
    show("pre-training step / matrix rate", operations / seconds / rate, "1",
         f"{seconds * 1e3:.0f} ms, {rate / 1e9:.0f} GFLOP/s")


def examples_of(count: int, lengths: range) -> tuple[list[list[int]], list[list[int]]]:
    examples = draw_examples(GENERATION, lengths, "tune", 0, count)
    return ([encode(example.query) for example in examples],
            [encode(example.response) for example in examples])


def tuning(model: GPT, notation: str) -> None:
    """A tuning step against one of all weights, and the share of insertion in it."""
    latents = LatentTokens(Placement.parse(notation), model.config.n_embd)
    queries, responses = examples_of(TuneConfig().batch_size, range(3, 4))

    def step(trained: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        batch = make_batch(latents.placement, queries, responses)
        response_loss(model, latents, batch).backward()
        optimizer.step()
        trained.zero_grad()

    model.requires_grad_(True)
    full = torch.optim.AdamW(model.parameters(), lr=1e-9)
    all_weights = least_time(lambda: step(model, full))
    model.requires_grad_(False)
    muon = Muon(latents.parameters(), lr=1e-9)
    seconds = least_time(lambda: step(latents, muon))
    insertion = least_time(lambda: make_batch(latents.placement, queries, responses))
    show(f"tuning step / all weights, {notation}", seconds / all_weights, "2/3 and a little",
         f"{seconds * 1e3:.0f} ms")
    show(f"insertion / tuning step, {notation}", insertion / seconds, "0")


def padding() -> None:
    """The share of padding in a batch of one length, and in one of mixed lengths."""
    for what, lengths in (("one length", range(3, 4)), ("mixed lengths", range(1, 6))):
        queries, responses = examples_of(TuneConfig().batch_size, lengths)
        tokens = [len(query) + len(response) for query, response in zip(queries, responses)]
        show(f"padding / batch, {what}", 1 - sum(tokens) / (max(tokens) * len(tokens)), "0")


def decoding(model: GPT, notation: str, rows: int = 64, tokens: int = 216) -> None:
    """With latents against without, beside the bare ratio of slots.

    An untrained model writes nothing but ``;``. So that is the comma here, and a reminder of eight
    characters after each makes items of nine, as in Generation.
    """
    comma, item = encode(";"), encode("44@47=83")
    times, slots = [], []
    for placement in (Placement(), Placement.parse(notation, separators={"Comma": comma})):
        latents = LatentTokens(placement, model.config.n_embd)
        times.append(least_time(lambda: generate(model, latents, [item] * rows, tokens,
                                                 reminder=item, comma_ids=comma), 2))
        row = AugmentedRow(placement, item)
        for index in range(tokens):
            row.append((comma + item)[index % 9])
        slots.append(len(row.sources))
    show(f"decoding / without latents, {notation}", times[1] / times[0],
         f"{slots[1] / slots[0]:.2f} (slots)", f"{times[1]:.1f} s, {rows} x {tokens}")


def cache(model: GPT) -> None:
    """One more token with a cache, and without; how the latter grows."""
    latents, seconds = LatentTokens(Placement(), model.config.n_embd), {}
    for length in (64, 128, 256):
        query = [encode("44@47=83,")[i % 9] for i in range(length)]
        one = least_time(lambda: generate(model, latents, [query], 1), 3)
        many = least_time(lambda: generate(model, latents, [query], 33), 3)
        cached = (many - one) / 32
        seconds[length] = one
        show(f"cached / uncached token after {length}", cached / one, "falls with length",
             f"{cached * 1e3:.1f} against {one * 1e3:.1f} ms")
    exponent = log(seconds[256] / seconds[64]) / log(4)
    show("growth of an uncached token, exponent", exponent, "1 to 2")


def batching(model: GPT) -> None:
    """A batch of 32 against 32 rows one at a time."""
    latents = LatentTokens(Placement.parse("Comma_4"), model.config.n_embd)
    queries, responses = examples_of(32, range(5, 6))

    def logits(rows: slice) -> Tensor:
        return response_logits(model, latents,
                               make_batch(latents.placement, queries[rows], responses[rows]))

    together = least_time(lambda: logits(slice(None)))
    apart = least_time(lambda: [logits(slice(row, row + 1)) for row in range(32)], 2)
    show("one row at a time / batch of 32", apart / together, "above 1")


def peak_memory() -> float:
    """GB of this process, 0 where the system does not tell."""
    try:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    except ImportError:
        return 0.0


def main() -> None:
    torch.manual_seed(0)
    config = PretrainConfig()
    model = GPT(config.model)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'':44}{'ratio':>8}   ideal")
    pretraining(model, config)
    model.requires_grad_(False).eval()
    for notation in ("Start_4", "Comma_4"):
        tuning(model, notation)
    padding()
    for notation in ("Start_4", "8_2", "Comma_4"):
        decoding(model, notation)
    cache(model)
    batching(model)
    print(f"\npeak memory {peak_memory():.2f} GB")


if __name__ == "__main__":
    main()
