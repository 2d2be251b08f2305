"""Latent thoughts: vectors that are inferred anew for every sequence.

The idea of "Scalable Language Models with Posterior Inference of Latent Thought Vectors",
arXiv 2502.01567, in its smallest form, beside that of latent_tokens.py:

           latent tokens                             latent thoughts
    one set of vectors for all inputs        a set of vectors for every sequence

            u <------------+                   mean, variance <--------+  fast: T steps
            |              | gradient                 | z = a sample   |  for this sequence
            v              |                          v                | gradient
    x -> frozen GPT -> NLL +                 x -> decoder -> NLL + KL -+
                                                   ^           |          slow: then one step
                                                   +-----------+          for all sequences

A sequence is a document under one of 54 hidden rules (hidden_rules.py):

    44@47=83=34,10@92=12=10,               +-9: first digits added, difference of the second, mod 9

The two operands cannot be predicted. Results can, each from the two numbers before it, once the
rule is known; that is what z is good for. The loss is an upper bound on -log p(x),

    bound = NLL + KL,       NLL = -E_q log p(x | z),       KL = KL(q(z) || p(z)).

NLL alone is no bound: a z that spelled out all of x would make it zero, and pay for that in KL.

    the paper       here                   shape           meaning
    z               z                      (B, L, M, Z)    M thought vectors for each of L layers
    p(z)            N(0, I)                                the prior
    p(x | z)        Decoder                                every character may read all of z
    q(z; mu, s^2)   Posterior              (B, L, M, Z)    a mean and a log variance per number
    fast learning   infer                                  of one posterior per sequence
    slow learning   train                                  of one decoder for all sequences

Every layer has vectors of its own and reads them by cross-attention, as in the paper. (As slots
before the text, like a Start group of latent tokens, they were read worse: docs/latent_thoughts.md,
which also says how the settings were found.) Other letters are those of model.py.

    python -m extras.latent_thoughts                  thoughts and a plain GPT of the same size
    python -m extras.latent_thoughts --seeds 3 --models all
    python -m extras.latent_thoughts --report runs/thoughts.json
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import log
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from extras.hidden_rules import draw_documents
from latent_tokens import UserError
from model import GPT, GPTConfig, rotary_tables
from tasks import ALPHABET, END, encode
from train import learning_rate, make_optimizers, set_learning_rate


@dataclass(frozen=True)
class Config:
    """Every field is an option of the command line: ``--fast-steps 16``."""

    reads: bool = True  # whether the decoder reads z; without, it is a plain GPT
    thoughts: int = 2  # M
    thought_size: int = 4  # Z
    n_layer: int = 1
    n_head: int = 4
    n_embd: int = 64  # D
    window: int = 6  # characters that self-attention sees, its own included; 0: all before it
    fast_steps: int = 16  # T
    fast_lr: float = 0.6  # of Adam on mean and log variance; it falls tenfold over the fast steps
    start_log_variance: float = -1.0  # of q in the first fast step, where its mean is 0
    kl_rise: float = 0.5  # share of the slow steps over which the weight of KL rises from 0 to 1
    equations: int = 8  # of a document
    results: int = 2  # of an equation: 44@47=83=34, each from the two numbers before it
    steps: int = 800  # slow ones
    batch_size: int = 16  # sequences of a slow step
    muon_lr: float = 0.05  # for the matrices inside the blocks
    adam_lr: float = 6e-3  # for embeddings, norms and head
    warmup: int = 40  # slow steps
    decay: float = 0.5  # the last part of the slow steps, over which the rates fall to zero
    checks: int = 6  # points of training at which held-out documents are scored
    held_out: int = 128  # documents behind a figure
    probed: int = 1080  # documents behind the probe: half of them fit it, half test it
    samples: int = 8  # of z for each document behind a bound

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head) or self.equations < 6:
            raise UserError("n_embd must be a multiple of 2 * n_head, and equations at least 6")
        zero_is_fine = ("window", "fast_steps", "kl_rise", "warmup")
        for name, value in asdict(self).items():
            if name not in ("reads", "start_log_variance"):
                if not (value > 0 or value == 0 and name in zero_is_fine):
                    raise UserError(f"{name} = {value} is too small")


FAST = {"n_head": 2, "n_embd": 16, "fast_steps": 2, "steps": 4, "batch_size": 4, "warmup": 1,
        "checks": 2, "held_out": 4, "probed": 108, "samples": 2, "equations": 6}


# ------------------------------------------------------------------------------------- the decoder

class Reader(nn.Module):
    """Cross-attention of one layer: queries from the characters, keys and values from its z.

    ``slots`` tells the M vectors apart. They are what latent tokens are, learned once for all
    inputs; z is what a sequence adds to them.
    """

    def __init__(self, config: Config):
        super().__init__()
        D, self.n_head = config.n_embd, config.n_head
        self.norm = nn.LayerNorm(D, bias=False)
        self.query = nn.Linear(D, D, bias=False)
        self.key_value = nn.Linear(config.thought_size, 2 * D, bias=False)
        self.slots = nn.Parameter(torch.randn(config.thoughts, 2 * D))
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x: (B, N, D); z: (B, M, Z); returns (B, N, D)."""
        (B, N, D), M, H = x.shape, z.shape[1], self.n_head
        q = self.query(self.norm(x)).view(B, N, H, D // H).transpose(1, 2)  # (B, H, N, K)
        key_value = (self.key_value(z) + self.slots).view(B, M, 2, H, D // H)
        k, v = key_value.permute(2, 0, 3, 1, 4)  # each (B, H, M, K)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, K)
        return self.out(mixed.transpose(1, 2).reshape(B, N, D))


class Decoder(GPT):
    """p(x | z): the GPT of model.py, whose blocks read z between self-attention and MLP.

    Without ``reads`` L is 0, z empty, its KL 0, and this is a plain GPT.
    """

    def __init__(self, config: Config):
        super().__init__(GPTConfig(len(ALPHABET), n_layer=config.n_layer, n_head=config.n_head,
                                   n_embd=config.n_embd))
        self.reads, self.window = config.reads, config.window
        L = config.n_layer if self.reads else 0
        self.z_shape = (L, config.thoughts, config.thought_size)
        for block in self.blocks[:L]:
            block.reader = Reader(config)  # inside the block, where Muon trains the matrices

    def hidden(self, token_ids: Tensor, z: Tensor) -> Tensor:
        """The last layer's states, (B, N, D), for token_ids (B, N) and z (B, L, M, Z)."""
        x, position_ids = self.embed(token_ids), torch.arange(token_ids.shape[1])  # (N,)
        rotary = rotary_tables(position_ids[None], self.config.head_width)
        back = position_ids[:, None] - position_ids  # (N, N): how many places back the other one is
        mask = (back >= 0) & (back < self.window) if self.window else None
        for layer, block in enumerate(self.blocks):
            x = x + block.attention(block.attention_norm(x), rotary, mask, None)
            if self.reads:
                x = x + block.reader(x, z[:, layer])
            x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
        return self.final_norm(x)

    def logits(self, token_ids: Tensor, z: Tensor) -> Tensor:
        """Of the next character, (B, N, V)."""
        return self.head(self.hidden(token_ids, z))

    def nll(self, token_ids: Tensor, z: Tensor) -> Tensor:
        """-log p(x | z) in nats, (B,), for token_ids (B, 1 + N): END (not scored), then x."""
        logits = self.logits(token_ids[:, :-1], z).transpose(1, 2)  # (B, V, N)
        return F.cross_entropy(logits, token_ids[:, 1:], reduction="none").sum(dim=1)


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

def to_ids(texts: list[str]) -> Tensor:
    """(B, 1 + N), opened by END, so that the first character is predicted, too."""
    return torch.tensor([encode(END + text) for text in texts])


def train(config: Config, seed: int) -> tuple[Decoder, list[dict]]:
    """For every batch the fast loop, then one slow step. All models of a seed read the same text.

    Also returns the figures of ``bound`` on held-out documents at some points of training. Raises
    UserError where the loss is not finite.
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
        if not loss.isfinite():
            raise UserError(f"the loss of step {step} is {loss.item()}: lower the rates")
        (loss / held_out[0, 1:].numel()).backward()
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate(step, config))
            optimizer.step()
        decoder.zero_grad()
        if (step + 1) % 50 == 0:
            nll, kl = loss.item(), q.kl().mean().item()
            print(f"  step {step + 1:4}, nats of a document: NLL {nll:6.1f}   KL {kl:5.1f}   "
                  f"bound {nll + kl:6.1f}", flush=True)
        if (step + 1) * config.checks % config.steps < config.checks:
            figures = bound(decoder, held_out, config, config.fast_steps, seed)
            checks.append({"sequences": (step + 1) * config.batch_size} | figures)
    return decoder, checks


@torch.no_grad()
def bound(decoder: Decoder, token_ids: Tensor, config: Config, steps: int,
          seed: int) -> dict[str, float]:
    """NLL, KL and bound after so many fast steps, in nats per character, as means over documents.

    The samples of z are new: on noise that a fast loop has seen NLL + KL is no bound. ``weighted``
    is the importance-weighted bound of the same samples, a tighter one.
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


# --------------------------------------------------------------------------------- the command line

def main(arguments: list[str] | None = None) -> None:
    from extras import thought_figures  # here, since it imports this module
    parser = argparse.ArgumentParser(prog="extras.latent_thoughts", usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=["thoughts", "plain", "plain-2", "no-z"], metavar="NAME",
        help=f"of {', '.join(thought_figures.variants(Config()))}, or all; default: the first 4")
    add("--seeds", type=int, default=1, metavar="N", help="train each with so many seeds")
    add("--first-seed", type=int, default=0, metavar="N", help="from 100 up to try things out")
    add("--out", type=Path, metavar="FILE", help="default: runs/thoughts.json (--fast: "
        "runs/thoughts-fast.json); what is finished there is reused")
    add("--report", type=Path, nargs="+", metavar="FILE", help="print the tables, train nothing")
    add("--fast", action="store_true", help="a try-out: ignores all below, means nothing")
    for field in fields(Config)[1:]:  # all but reads: --models no-z
        add(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default,
            metavar=field.type.__name__.upper(), help=f"default: {field.default}")
    try:
        args = parser.parse_args(arguments)
        print(thought_figures.report(args.report) if args.report else thought_figures.run(args))
    except (UserError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
