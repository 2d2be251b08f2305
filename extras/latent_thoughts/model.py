"""The decoder p(x | z), and the models that it is compared with.

Every layer has thought vectors of its own and reads them by cross-attention, as in the paper:

    the paper       here                     shape           meaning
    z               z                        (B, L, M, Z)    M thought vectors for each of L layers
    p(z)            N(0, I)                                  the prior
    p(x | z)        Decoder                                  every character may read all of z
    q(z; mu, s^2)   Posterior (learning.py)  (B, L, M, Z)    a mean and a log variance per number
    fast learning   infer                                    of one posterior per sequence
    slow learning   train                                    of one decoder for all sequences

Other letters are those of the GPT's model.py.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from latent_tokens import UserError
from model import GPT, GPTConfig, rotary_tables
from tasks import ALPHABET


@dataclass(frozen=True)
class Config:
    """Every field but the first is an option of the command line: ``--fast-steps 16``."""

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
        least = {"reads": 0, "window": 0, "fast_steps": 0, "kl_rise": 0,
                 "start_log_variance": -inf, "equations": 6, "probed": 4}  # all others: above 0
        for name, value in asdict(self).items():
            if not (least.get(name, 0) <= value < inf and (value or name in least)):
                raise UserError(f"{name} = {value} is out of range")
        if self.n_embd % (2 * self.n_head):
            raise UserError(f"n_embd = {self.n_embd} is no multiple of 2 * n_head = "
                            f"{2 * self.n_head}")


FAST = {"n_head": 2, "n_embd": 16, "fast_steps": 2, "steps": 4, "batch_size": 4, "warmup": 1,
        "checks": 2, "held_out": 4, "probed": 108, "samples": 2, "equations": 6}


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
    """The GPT of model.py, whose blocks read z between self-attention and MLP.

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
        rotary = rotary_tables(position_ids[None], self.config.n_embd // self.config.n_head)
        back = position_ids[:, None] - position_ids  # (N, N): how many places back the other one is
        mask = (back >= 0) & (back < self.window) if self.window else None
        for layer, block in enumerate(self.blocks):
            x = x + block.attention(block.attention_norm(x), rotary, mask, None, None)
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


# ------------------------------------------------------------------------------------ to compare

def parameters_of(config: Config) -> int:
    return sum(parameter.numel() for parameter in Decoder(config).parameters())


def plain_gpt(config: Config, n_layer: int) -> Config:
    """Without z and window; as narrow as a GPT with no fewer parameters can be."""
    plain = replace(config, reads=False, fast_steps=0, window=0, n_layer=n_layer,
                    n_embd=2 * config.n_head)
    while parameters_of(plain) < parameters_of(config):
        plain = replace(plain, n_embd=plain.n_embd + 2 * plain.n_head)
    return plain


# plain: as many layers as thoughts; plain-2: one more; both have at least as many parameters. The
# others differ in one thing each from thoughts; no-z is the decoder by itself.
VARIANTS: dict[str, Callable[[Config], Config]] = {
    "thoughts": lambda config: config,
    "plain": lambda config: plain_gpt(config, config.n_layer),
    "plain-2": lambda config: plain_gpt(config, config.n_layer + 1),
    "no-z": lambda config: replace(config, reads=False, fast_steps=0),
    "few-steps": lambda config: replace(config, fast_steps=max(1, config.fast_steps // 4)),
    "half-width": lambda config: replace(config, n_embd=config.n_embd // 2),
    "half-z": lambda config: replace(config, thoughts=max(1, config.thoughts // 2)),
}
