"""A small GPT in plain PyTorch: embeddings and position ids in, next-token logits out.

It is a decoder-only Transformer (pre-norm, GELU, rotary positions) and knows nothing of latent
tokens. Two properties make it usable with them:

    * positions are data. ``position_ids`` is an argument, and two slots may share one id; that is
      how a latent token takes the position of the verbal token after it (latent_tokens.py);
    * what a slot attends to is decided by *slot order* and by padding, never by position id.

One thing is out of the ordinary: an input embedding also sees the two verbal tokens before its own
(``GPT.embed``; docs/testbed.md says why).

Letters used for shapes in every file:

    B  batch                      H  heads                   V  size of the vocabulary
    N  verbal tokens              K  width of one head       M  latents (latent_tokens.py)
    T  slots fed in this call     D  width of the model, H * K
    S  slots to attend to (cached + fed)

Left out, on purpose: dropout, biases, weight tying, mixed precision.
"""

from dataclasses import asdict, dataclass
from io import BytesIO
import os
from pathlib import Path
import zlib

import torch
from torch import Tensor, nn
import torch.nn.functional as F

LOOK_BACK = 2  # verbal tokens before its own that an input embedding also sees


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    block_size: int = 352  # position ids of pre-training: 0 ... 351 (for the reader and tests)
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # D

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of 2 * n_head = "
                             f"{2 * self.n_head}: every head rotates pairs of channels")


# -------------------------------------------------------------------------------------- the cache

class KVCache:
    """Keys and values of all layers for up to ``capacity`` slots, and which of them are padding."""

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, device=None, dtype=None):
        shape = (2, config.n_layer, batch_size, config.n_head, capacity,
                 config.n_embd // config.n_head)
        self.keys, self.values = torch.empty(shape, device=device, dtype=dtype)
        self.attention_mask = torch.empty(batch_size, capacity, dtype=torch.bool, device=device)
        self.capacity, self.length = capacity, 0  # slots that fit, slots stored

    def append_mask(self, attention_mask: Tensor) -> Tensor:
        """Store (B, T) of new slots; return (B, S) of all. Raises ValueError if they do not fit."""
        start, self.length = self.length, self.length + attention_mask.shape[1]
        if self.length > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} slots, not {self.length}")
        self.attention_mask[:, start:self.length] = attention_mask
        return self.attention_mask[:, :self.length]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, K) of one layer, after the mask; return those of all S slots."""
        start, end = self.length - k.shape[2], self.length
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


# ------------------------------------------------------------------------- positions and attention

def rotary_tables(position_ids: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, 1, T, K), for position_ids (B, T): computed once per forward."""
    # In float32 whatever the model is: bfloat16 cannot represent position 257.
    pair = torch.arange(head_width // 2, device=position_ids.device).float()
    frequencies = 10_000.0 ** (-pair / (head_width // 2))  # (K/2,) radians per position
    angles = position_ids[:, None, :, None] * frequencies  # (B, 1, T, K/2)
    angles = torch.cat([angles, angles], dim=-1)  # (B, 1, T, K)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (B, H, T, K): channel i pairs with channel i + K/2."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def causal_mask(attention_mask: Tensor, T: int) -> Tensor:
    """What each of the last T slots may attend to: (B, 1, T, S), bool, from (B, S).

    A slot sees the slots up to itself, in slot order, that are not padding. It always sees itself,
    so that padding has something to attend to; nobody reads what padding computes.
    """
    S = attention_mask.shape[1]
    slots = torch.arange(S, device=attention_mask.device)
    now = slots[-T:, None]  # (T, 1)
    earlier, itself = slots <= now, slots == now  # (T, S)
    return ((earlier & attention_mask[:, None, :]) | itself)[:, None]  # (B, 1, T, S)


# -------------------------------------------------------------------------------------- the model

class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        D = config.n_embd
        self.layer, self.n_head = layer, config.n_head
        self.attention_norm = nn.LayerNorm(D, bias=False)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.attention_out = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.LayerNorm(D, bias=False)
        self.mlp_in = nn.Linear(D, 4 * D, bias=False)
        self.mlp_out = nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None,
                cache: KVCache | None) -> Tensor:
        """x: (B, T, D); rotary: from ``rotary_tables``; mask: (B, 1, T, S), None = causal."""
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None,
                  cache: KVCache | None) -> Tensor:
        """Multi-head self-attention of x, (B, T, D) to (B, T, D)."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head)  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, K)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.attention_out(mixed.transpose(1, 2).reshape(B, T, D))


class GPT(nn.Module):
    """Decoder-only Transformer. ``model(model.embed(token_ids), position_ids)`` gives logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config, self.notes = config, {}  # notes: what is to be known of a base; see save
        self.embeddings = nn.ModuleList(  # table i: of the verbal token i places back
            nn.Embedding(config.vocab_size + 1, config.n_embd, padding_idx=config.vocab_size)
            for _ in range(1 + LOOK_BACK))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for block in self.blocks:  # every block starts as the identity
            nn.init.zeros_(block.attention_out.weight)
            nn.init.zeros_(block.mlp_out.weight)
        nn.init.zeros_(self.head.weight)  # and the model starts by predicting uniformly

    def save(self, path: Path, notes: dict) -> None:
        """Config, weights, and what else is to be known of them. A file that is there is whole: it
        is renamed once it is written."""
        content, partial = BytesIO(), path.with_name(f"{path.name}.{os.getpid()}.partial")
        torch.save({"config": asdict(self.config), "notes": notes, "weights": self.state_dict()},
                   content)
        try:
            partial.write_bytes(content.getvalue())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path) -> "GPT":
        """The frozen base in a file, with its ``notes``. Raises ValueError if it is none."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            model = cls(GPTConfig(**saved["config"]))
            model.load_state_dict(saved["weights"])
            model.notes = saved["notes"]
        except Exception as error:  # torch.load raises half a dozen types on a damaged file
            raise ValueError(f"{path} is not a readable base") from error
        return model.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def token_embedding(self) -> Tensor:
        """(V, D): the tokens themselves, without what stood before them."""
        return self.embeddings[0].weight[:self.config.vocab_size]

    def embed(self, token_ids: Tensor) -> Tensor:
        """x_t = E_0[s_t] + E_1[s_(t-1)] + E_2[s_(t-2)] of consecutive verbal tokens.

        token_ids: (B, N); returns (B, N, D). Raises IndexError on an id outside the vocabulary.
        Before the first token id V stands in, whose embedding (``padding_idx``) is 0 for good.
        """
        N, V = token_ids.shape[1], self.config.vocab_size
        unknown = token_ids[(token_ids < 0) | (token_ids >= V)]
        if len(unknown):
            raise IndexError(f"token id {unknown[0]} is not in the vocabulary, 0 to {V - 1}")
        tokens = F.pad(token_ids, (LOOK_BACK, 0), value=V)  # (B, 2 + N)
        return sum(table(tokens[:, LOOK_BACK - back:][:, :N])
                   for back, table in enumerate(self.embeddings))

    def embed_last(self, rows: list[list[int]]) -> Tensor:
        """What ``embed`` gives for the last token of each row: (B, 1, D)."""
        recent = [row[-1 - LOOK_BACK:] for row in rows]
        padded = [token_ids + [0] * (1 + LOOK_BACK - len(token_ids)) for token_ids in recent]
        last = torch.tensor([[[len(token_ids) - 1]] for token_ids in recent], device=self.device)
        embeddings = self.embed(torch.tensor(padded, device=self.device))  # (B, 1 + LOOK_BACK, D)
        return embeddings.take_along_dim(last, dim=1)

    def make_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty one for ``forward``, of the weights' type."""
        return KVCache(self.config, batch_size, capacity, self.device, self.head.weight.dtype)

    def forward(self, embeddings: Tensor, position_ids: Tensor,
                attention_mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Next-token logits (B, T, V) of every slot.

        embeddings: (B, T, D), one for each slot.
        position_ids: (B, T), integer. Slots may share an id, and ids need not rise.
        attention_mask: (B, T) bool, False for padding, which no other slot sees; None = no padding.
        cache: slots fed before, seen by all of these; extended in place.
        """
        for name, tensor in (("position_ids", position_ids), ("attention_mask", attention_mask)):
            if tensor is not None and tensor.shape != embeddings.shape[:2]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, "
                                 f"the embeddings need {tuple(embeddings.shape[:2])}")
        if cache is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(position_ids, dtype=torch.bool)
            attention_mask = cache.append_mask(attention_mask)  # (B, S)
        mask = None  # causal order says it all, and attention is fastest
        if attention_mask is not None:
            mask = causal_mask(attention_mask, T=embeddings.shape[1])  # (B, 1, T, S)
        rotary = rotary_tables(position_ids, self.config.n_embd // self.config.n_head)
        x = embeddings
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        return self.head(self.final_norm(x))


def weights_checksum(module: nn.Module) -> int:
    tensors = module.state_dict().values()
    return zlib.crc32(b"".join(each.cpu().numpy().tobytes() for each in tensors))
