"""A small GPT in plain PyTorch: the frozen base model that latent tokens steer.

It is an ordinary decoder-only Transformer (pre-norm, GELU, rotary positions) and it knows nothing
of latent tokens. Two properties make it usable for them, and both are visible in its signature:

    * positions are data. ``position_ids`` is an argument and two slots may share one id, which is
      how a latent token takes the position of the verbal token behind it (latent_tokens.py);
    * what a slot may see is decided by *slot order* and by ``valid``, never by position id.

Letters used for shapes in every file:

    B  rows of the batch          H  heads                   V  size of the vocabulary
    T  slots fed in this call     K  width of one head       L  layers
    S  slots visible in all       D  width of the model, H * K
       (cached + fed)

Left out, on purpose: dropout, biases, weight tying, mixed precision.
"""

from dataclasses import dataclass
import os

import torch
from torch import Tensor, nn
import torch.nn.functional as F


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    context: int = 256  # position ids seen in pre-training: 0 ... context - 1
    layers: int = 4
    heads: int = 4
    width: int = 128

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = "
                             f"{2 * self.heads}: every head rotates pairs of channels")


class KVCache:
    """Keys and values of the slots fed so far, with room to grow, for all layers.

    ``valid`` is (B, S): False where a row has padding, which nothing may attend to.
    """

    def __init__(self):
        self.length = 0  # S before the current call
        self.valid: Tensor | None = None
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> 2 x (B, H, capacity, K)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, K) of one layer; return all S of them, the old ones first."""
        end = self.length + k.shape[2]
        if layer not in self.layers or self.layers[layer][0].shape[2] < end:
            room = k.new_empty(k.shape[0], k.shape[1], end + end // 2 + 16, k.shape[3])
            grown = room, torch.empty_like(room)
            for new, old in zip(grown, self.layers.get(layer, ())):
                new[:, :, :self.length] = old[:, :, :self.length]
            self.layers[layer] = grown
        keys, values = self.layers[layer]
        keys[:, :, self.length:end] = k
        values[:, :, self.length:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def extend_valid(self, valid: Tensor) -> Tensor:
        """Append valid (B, T) of the new slots; return (B, S) of all."""
        self.valid = valid if self.valid is None else torch.cat([self.valid, valid], dim=1)
        return self.valid


def rotary_tables(position_ids: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, 1, T, K), for position_ids (B, T): computed once per forward."""
    half = torch.arange(head_width // 2, device=position_ids.device)
    frequencies = 10_000.0 ** (-half / (head_width // 2))  # (K/2,) radians per position
    angles = position_ids[:, None, :, None] * frequencies  # (B, 1, T, K/2)
    angles = torch.cat([angles, angles], dim=-1)  # (B, 1, T, K)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (B, H, T, K): channel i pairs with channel i + K/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def visibility(valid: Tensor, fed: int) -> Tensor:
    """Which slots each of the last ``fed`` slots may attend to: (B, 1, T, S), bool.

    A slot sees the valid slots up to itself in slot order. It always sees itself, so that padding
    has something to attend to; nobody reads what padding computes.
    """
    seen = valid.shape[1]
    order = torch.arange(seen, device=valid.device)
    now = order[-fed:, None]  # (T, 1)
    causal = order <= now  # (T, S)
    itself = order == now
    return ((causal & valid[:, None, :]) | itself)[:, None]  # (B, 1, T, S)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(K)) v, written out. Returns the mix (B, H, T, K), weights (B, H, T, S)."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ v, weights


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        width = config.width
        self.layer, self.heads = layer, config.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, rotary, mask, cache, weights) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache, weights)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def attention(self, x: Tensor, rotary, mask, cache, weights) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, K)
        if weights is not None:
            mixed, weight = explicit_attention(q, k, v, mask)
            weights.append(weight)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.attention_out(mixed.transpose(1, 2).reshape(B, T, D))


class GPT(nn.Module):
    """Decoder-only Transformer. ``model(inputs, position_ids)`` gives next-token logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        for block in self.blocks:  # every block starts as the identity
            nn.init.zeros_(block.attention_out.weight)
            nn.init.zeros_(block.mlp_out.weight)
        nn.init.zeros_(self.head.weight)  # and the model starts by predicting uniformly

    def hidden_states(self, inputs: Tensor, position_ids: Tensor, valid: Tensor | None = None,
                      cache: KVCache | None = None, weights: list | None = None) -> Tensor:
        """Run the blocks and the final norm; returns (B, T, D).

        inputs: token ids (B, T), integer, or embeddings (B, T, D), floating point.
        position_ids: (B, T), integer. Slots may share an id and ids need not rise.
        valid: (B, T) bool, False for padding, which no other slot attends to; None = all valid.
        cache: slots fed before, seen by all of these; extended in place.
        weights: a list that receives each layer's attention weights (B, H, T, S), which takes the
            explicit softmax path in place of the fused one.

        Raises ValueError if position_ids or valid do not have the shape (B, T) of inputs.
        """
        x = inputs if inputs.is_floating_point() else self.token_embedding(inputs)  # (B, T, D)
        for name, tensor in (("position_ids", position_ids), ("valid", valid)):
            if tensor is not None and tensor.shape != x.shape[:2]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, "
                                 f"the inputs need {tuple(x.shape[:2])}")
        mask = self._mask(x, valid, cache, weights)
        rotary = rotary_tables(position_ids, self.config.width // self.config.heads)
        for block in self.blocks:
            x = block(x, rotary, mask, cache, weights)
        if cache is not None:
            cache.length += x.shape[1]
        return self.final_norm(x)

    def forward(self, inputs: Tensor, position_ids: Tensor, valid: Tensor | None = None,
                cache: KVCache | None = None, weights: list | None = None) -> Tensor:
        """Next-token logits (B, T, V) of every slot; arguments as in ``hidden_states``."""
        return self.head(self.hidden_states(inputs, position_ids, valid, cache, weights))

    def configure_optimizers(self, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the blocks, AdamW for embeddings, norms and head."""
        matrices = [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]
        chosen = set(map(id, matrices))
        others = [parameter for parameter in self.parameters() if id(parameter) not in chosen]
        return [torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
                torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]

    @staticmethod
    def _mask(x: Tensor, valid, cache, weights) -> Tensor | None:
        """(B, 1, T, S), or None where plain causal order says it all (the fused fast path)."""
        if valid is None and cache is None and weights is None:
            return None
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if cache is not None:
            valid = cache.extend_valid(valid)
        return visibility(valid, fed=x.shape[1])


def save_atomically(content, path) -> None:
    """torch.save by way of a neighbour: a crash leaves the old file, never half a new one."""
    partial = f"{path}.partial"
    torch.save(content, partial)
    os.replace(partial, path)
