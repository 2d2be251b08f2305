"""How z and the decoder are learned: z fast, anew for every sequence; the decoder slowly.

The loss is an upper bound on -log p(x), in nats:

    bound = NLL + KL,       NLL = -E_q log p(x | z),       KL = KL(q(z) || p(z)).

NLL alone is no bound: a z that spelled out all of x would make it zero, and pay for that in KL.
"""

from collections.abc import Callable
from math import isfinite, log
from typing import NamedTuple

import torch
from torch import Tensor

from extras.latent_thoughts.model import Config, Decoder
from extras.latent_thoughts.text import draw_documents, to_ids
from latent_tokens import UserError
from train import descend, make_optimizers


# -------------------------------------------------------------------------- the posterior: fast

class Posterior(NamedTuple):
    """q(z) of B sequences: a Gaussian for every number of z, all independent."""

    mean: Tensor  # (B, L, M, Z)
    log_variance: Tensor  # (B, L, M, Z)

    def sample(self, noise: Tensor) -> Tensor:
        """z = mean + sd * noise, of the same shape."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats, (B,)."""
        each = self.mean ** 2 + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * each.flatten(1).sum(dim=1)

    def log_ratio(self, noise: Tensor) -> Tensor:
        """log p(z) - log q(z) at z = sample(noise), (B,). Its mean over all noise is -KL."""
        each = noise ** 2 - self.sample(noise) ** 2 + self.log_variance
        return 0.5 * each.flatten(1).sum(dim=1)


@torch.enable_grad()
def infer(nll: Callable[[Tensor], Tensor], q: Posterior, draw: Callable[[], Tensor], steps: int,
          lr: float, kl_weight: float = 1.0) -> Posterior:
    """The fast loop: from q so many steps of Adam down the bound. No encoder makes a first guess.

    nll: -log p(x | z) of every sequence, (B,), given z. draw: noise, (B, L, M, Z), for a sample.
    Sequences do not disturb one another, since Adam treats every number by itself.
    """
    q = Posterior(*(each.clone().requires_grad_() for each in q))
    optimizer = torch.optim.Adam(q, lr=lr)
    for step in range(steps):
        bounds = nll(q.sample(draw())) + kl_weight * q.kl()  # (B,)
        # Not bounds.sum().backward(): that would add to the gradients of the decoder, too.
        for parameter, gradient in zip(q, torch.autograd.grad(bounds.sum(), q)):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = lr * 0.1 ** (step / max(1, steps - 1))
        optimizer.step()
    return Posterior(*(each.detach() for each in q))


def infer_thoughts(decoder: Decoder, token_ids: Tensor, config: Config, steps: int,
                   generator: torch.Generator, kl_weight: float = 1.0) -> tuple[Posterior, Tensor]:
    """q(z) of token_ids (B, 1 + N) after so many fast steps, and one z drawn from it.

    Without any step q is the prior.
    """
    shape = (len(token_ids), *decoder.z_shape)

    def draw() -> Tensor:  # new noise in every step
        return torch.randn(shape, generator=generator)

    log_variance = config.start_log_variance if steps else 0.0
    start = Posterior(torch.zeros(shape), torch.full(shape, log_variance))
    q = infer(lambda z: decoder.nll(token_ids, z), start, draw, steps, config.fast_lr, kl_weight)
    return q, q.sample(draw())


# ---------------------------------------------------------------------------- the decoder: slow

def train(config: Config, seed: int) -> tuple[Decoder, list[dict]]:
    """For every batch the fast loop, then one slow step. All models of a seed read the same text.

    Also returns the figures of ``bound`` on held-out documents at some points of training. Raises
    UserError where they are not finite.
    """
    torch.manual_seed(seed)
    decoder, generator = Decoder(config), torch.Generator().manual_seed(seed)
    optimizers, checks = make_optimizers(decoder, config), []
    form = (config.equations, config.results)
    held_out = to_ids(draw_documents("check", seed, config.held_out, *form)[1])
    for step in range(config.steps):
        token_ids = to_ids(draw_documents(f"train/{step}", seed, config.batch_size, *form)[1])
        kl_weight = min(1.0, step / (config.kl_rise * config.steps)) if config.kl_rise else 1.0
        q, z = infer_thoughts(decoder, token_ids, config, config.fast_steps, generator, kl_weight)
        loss = decoder.nll(token_ids, z).mean()
        descend(loss / held_out[0, 1:].numel(), optimizers, step, config)  # per character
        if (step + 1) % 50 == 0:
            nll, kl = loss.item(), q.kl().mean().item()
            print(f"  step {step + 1:4}, nats of a document: NLL {nll:6.1f}   KL {kl:5.1f}   "
                  f"bound {nll + kl:6.1f}", flush=True)
        if (step + 1) * config.checks % config.steps < config.checks:
            figures = bound(decoder, held_out, config, config.fast_steps, seed)
            if not isfinite(figures["bound"]):
                raise UserError(f"the bound after {step + 1} steps is {figures['bound']}: lower "
                                f"the rates")
            checks.append({"sequences": (step + 1) * config.batch_size} | figures)
    return decoder, checks


@torch.no_grad()
def bound(decoder: Decoder, token_ids: Tensor, config: Config, steps: int,
          seed: int) -> dict[str, float]:
    """NLL, KL and bound after so many fast steps, in nats per character, as means over documents.

    The samples of z are new: on noise that a fast loop has seen NLL + KL is no bound. ``weighted``
    is the importance-weighted bound of the same samples (Burda et al. 2016), a tighter one.
    """
    generator = torch.Generator().manual_seed(seed)
    q, z = infer_thoughts(decoder, token_ids, config, steps, generator)
    nll, log_weights = [], []
    for _ in range(config.samples):
        noise = torch.randn(z.shape, generator=generator)
        nll.append(decoder.nll(token_ids, q.sample(noise)))  # (B,)
        log_weights.append(q.log_ratio(noise) - nll[-1])  # log p(x, z) - log q(z)
    weighted = log(config.samples) - torch.stack(log_weights).logsumexp(dim=0)  # (B,)
    figures = {"nll": torch.stack(nll), "kl": q.kl(), "weighted": weighted}
    figures = {name: each.mean().item() / token_ids[0, 1:].numel()
               for name, each in figures.items()}
    return figures | {"bound": figures["nll"] + figures["kl"]}
