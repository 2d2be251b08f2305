"""What is measured on a trained model, on documents that no training saw."""

from statistics import fmean

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from extras.latent_thoughts.learning import bound, infer_thoughts
from extras.latent_thoughts.model import Config, Decoder
from extras.latent_thoughts.text import (draw_documents, ideal_figures, ideal_probe, ideal_share,
                                         share_following, share_of_best_rule, to_ids)
from tasks import decode, random_source

INFERENCE_STEPS = (0, 1, 4, 16, 64)
PREFIXES = (1, 2, 4)  # equations that z is inferred from, before a continuation of two more
PROBES = {"rule": slice(None), "first operation": 0, "second operation": 1, "modulus": 2}


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
    """All figures of a trained model, and beside them those of an ideal reader."""
    generator, form = torch.Generator().manual_seed(seed), (config.equations, config.results)
    rules, texts = draw_documents("test", seed, config.held_out, *form)
    probed_rules, probed = draw_documents("probe", seed, config.probed, *form)
    length, size = len(texts[0]), len(texts[0]) // config.equations
    inputs = features(decoder, probed, config, seed)
    prior = torch.randn(len(texts), *decoder.z_shape, generator=generator)
    from_nothing = continuations(decoder, [""] * len(texts), prior, length, generator)
    ideal = ideal_figures(texts) | {"characters": length, "few-shot": {},
                                    "probe": ideal_probe(probed[len(probed) // 2:])}
    figures = {
        "bounds": {steps: bound(decoder, to_ids(texts), config, steps, seed)
                   for steps in (INFERENCE_STEPS if config.reads else (0,))},
        "probe": {part: linear_probe(inputs, [rule[place] for rule in probed_rules])
                  for part, place in PROBES.items()},
        "one rule": fmean(map(share_of_best_rule, from_nothing)),
        "samples": from_nothing[:3], "few-shot": {}, "continued": {}, "ideal": ideal}
    for equations in PREFIXES:
        prefixes = [text[:equations * size] for text in texts]
        _, z = infer_thoughts(decoder, to_ids(prefixes), config, config.fast_steps, generator)
        written = continuations(decoder, prefixes, z, 2 * size, generator)
        figures["few-shot"][equations] = fmean(map(share_following, rules, written))
        figures["continued"][equations] = f"{rules[0]}: {prefixes[0]} -> {written[0]}"
        ideal["few-shot"][equations] = ideal_share(rules, prefixes, random_source("ideal", seed))
    return figures
