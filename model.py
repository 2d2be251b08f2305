"""A small GPT in plain PyTorch: embeddings and position ids in, next-token logits out.

It is a decoder-only Transformer (pre-norm, GELU, rotary positions) and knows nothing of latent
tokens. Two properties make it usable with them:

    * positions are data. ``position_ids`` is an argument, and two slots may share one id; that is
      how a latent token takes the position of the verbal token after it (latent_tokens.py);
    * what a slot attends to is data, too: all slots up to itself, or what ``attention_mask`` says.

Not as usual: an input embedding also sees the two verbal tokens before its own (``GPT.embed``), or
look-ups are hardly learned. Left out: dropout, biases, tied weights, mixed precision.

Letters used for shapes in every file:

    B  batch                      H  heads                   V  size of the vocabulary
    N  verbal tokens              K  width of one head       M  latents (latent_tokens.py)
    T  slots fed in this call     D  width of the model, H * K
    S  slots to attend to: those of this call, or places of the cache
"""

from dataclasses import asdict, dataclass
from io import BytesIO
import os
from pathlib import Path
import zlib

import torch
from torch import Tensor, nn
import torch.nn.functional as F

NOT_SCORED = -100  # a target that F.cross_entropy ignores
LOOK_BACK = 2  # verbal tokens before its own that an input embedding also sees: docs/testbed.md


class UserError(ValueError):
    """A mistake of the user's, not of the code's: train.py prints it as one line."""


def pad(rows: list[list[int]], value: int = 0, device=None) -> Tensor:
    """Rows of unequal length, padded on the right: (B, longest). Not all of them may be empty."""
    if not any(rows):
        raise ValueError("a batch needs a query, and a response that is not empty")
    longest = max(map(len, rows))
    padded = [row + [value] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device)


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


class KVCache:
    """Keys and values of all layers, of slots that are fed in several calls. It grows as needed.
    The caller says at which *place* of its row each slot is stored, so that one that nobody is to
    see any more can be overwritten. What is at place 0, padding above all, is never seen."""

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None):
        shape = (config.n_layer, batch_size, config.n_head, 0, config.n_embd // config.n_head)
        self.keys = self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.is_seen = torch.zeros(batch_size, 0, dtype=torch.bool, device=device)  # (B, S)

    def visible(self, places: Tensor) -> Tensor:
        """Make room for slots at these places (B, T); returns what they see, (B, T, S): what is
        stored already, less what they overwrite, and of themselves those up to each slot."""
        before = self.is_seen.shape[1]
        S, self.is_first_call = max(before, int(places.max()) + 1), before == 0
        self.is_seen = F.pad(self.is_seen, (0, S - before)).scatter(1, places, True)
        self.is_seen[:, 0] = False
        if (missing := S - self.keys.shape[3]) > 0:
            room = (0, 0, 0, missing + 32)
            self.keys, self.values = F.pad(self.keys, room), F.pad(self.values, room)
        slot = torch.arange(places.shape[1], device=places.device).expand_as(places)  # (B, T)
        stored = torch.zeros_like(self.is_seen, dtype=torch.long).scatter(1, places, slot)  # (B, S)
        return self.is_seen[:, None] & (stored[:, None] <= slot[..., None])

    def store(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H, T, K) of one layer; return those to attend to, each (B, H, S, K)."""
        row, S = torch.arange(len(places), device=places.device)[:, None], self.is_seen.shape[1]
        self.keys[layer][row, :, places] = k.transpose(1, 2)  # (B, T, H, K)
        self.values[layer][row, :, places] = v.transpose(1, 2)
        if self.is_first_call:  # what is stored at place 0 may still be seen in it
            return k, v
        return self.keys[layer, :, :, :S], self.values[layer, :, :, :S]


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

    def forward(self, x: Tensor, *rest) -> Tensor:
        """x: (B, T, D); rest: what else ``attention`` takes."""
        x = x + self.attention(self.attention_norm(x), *rest)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None,
                  cache: KVCache | None, places: Tensor | None) -> Tensor:
        """Multi-head self-attention of x, (B, T, D) to (B, T, D). rotary: from ``rotary_tables``;
        mask: (B, 1, T, S), None = causal; cache, places: as in ``GPT.forward``."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head)  # (B, T, 3, H, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.store(self.layer, places, k, v)  # (B, H, S, K)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.attention_out(mixed.transpose(1, 2).reshape(B, T, D))


class GPT(nn.Module):
    """Decoder-only Transformer. ``model(model.embed(token_ids), position_ids)`` gives logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config, self.notes = config, {}  # notes: what train.py says of a base
        self.embeddings = nn.ModuleList(  # table i: of the verbal token i places back
            nn.Embedding(config.vocab_size + 1, config.n_embd, padding_idx=config.vocab_size)
            for _ in range(1 + LOOK_BACK))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for block in self.blocks:  # every block starts as the identity, predictions as uniform:
            nn.init.zeros_(block.attention_out.weight)
            nn.init.zeros_(block.mlp_out.weight)
        nn.init.zeros_(self.head.weight)  # in step 1 it alone learns, from step 3 on all do

    def save(self, path, replace: bool = True) -> None:
        save_whole({"config": asdict(self.config), "notes": self.notes,
                    "weights": self.state_dict()}, path, replace)

    @classmethod
    def load(cls, path) -> "GPT":
        """The frozen base in a file, with its ``notes``. Raises UserError if it is none."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            model = cls(GPTConfig(**saved["config"]))
            model.load_state_dict(saved["weights"])
            model.notes = saved["notes"]
        except Exception as error:  # torch.load raises half a dozen types on a damaged file
            raise UserError(f"{path} is not a readable base: delete it and train anew") from error
        return model.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def token_embedding(self) -> Tensor:
        """(V, D): the tokens themselves, without what stood before them."""
        return self.embeddings[0].weight[:self.config.vocab_size]

    def embed(self, token_ids: Tensor) -> Tensor:
        """x_t = E_0[s_t] + E_1[s_(t-1)] + E_2[s_(t-2)] of verbal tokens s, (B, N) to (B, N, D).
        Places before the first token hold id V, whose embedding (``padding_idx``) stays 0.
        Raises IndexError on an id outside the vocabulary."""
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
        last = torch.tensor([[[len(token_ids) - 1]] for token_ids in recent], device=self.device)
        return self.embed(pad(recent, device=self.device)).take_along_dim(last, dim=1)

    def make_cache(self, batch_size: int) -> KVCache:
        """An empty one for ``forward``, of the weights' type."""
        return KVCache(self.config, batch_size, self.device, self.head.weight.dtype)

    def forward(self, embeddings: Tensor, position_ids: Tensor,
                attention_mask: Tensor | None = None, cache: KVCache | None = None,
                places: Tensor | None = None) -> Tensor:
        """Next-token logits (B, T, V) of every slot.

        embeddings: (B, T, D); position_ids: (B, T), some of which may be the same, in any order.
        attention_mask: (B, T, T), bool: which slots of this call each slot sees. None: all up to
            itself. Later calls with a cache take none: all that is stored is seen, too.
        cache, places: where in the cache the slots are stored, (B, T).
        Raises ValueError on shapes that do not fit, and on a mask in a later call.
        """
        for name, tensor in (("position_ids", position_ids), ("attention_mask", attention_mask),
                             ("places", places)):
            if tensor is not None and tensor.shape[:2] != embeddings.shape[:2]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, "
                                 f"the embeddings need {tuple(embeddings.shape[:2])}")
        mask = attention_mask
        if cache is not None:
            stored = cache.visible(places)  # (B, T, S)
            if not cache.is_first_call:
                if mask is not None:
                    raise ValueError("an attention_mask is for the first call with a cache")
                mask = stored
        mask = None if mask is None else mask[:, None]  # (B, 1, T, S)
        rotary = rotary_tables(position_ids, self.config.n_embd // self.config.n_head)
        x = embeddings
        for block in self.blocks:
            x = block(x, rotary, mask, cache, places)
        return self.head(self.final_norm(x))


def weights_checksum(module: nn.Module) -> int:
    """Of all bits of its weights, whatever their type."""
    tensors = (each.cpu().flatten().view(torch.uint8) for each in module.state_dict().values())
    return zlib.crc32(b"".join(each.numpy().tobytes() for each in tensors))


def save_whole(content: dict, path, replace: bool = True) -> None:
    """``torch.save``, but no file is ever half a file: what is there stays until all is written
    or, without ``replace``, for good. Raises OSError."""
    written, partial = BytesIO(), Path(f"{path}.{os.getpid()}.partial")
    torch.save(content, written)
    try:
        partial.write_bytes(written.getvalue())
        try:
            (os.replace if replace else os.link)(partial, path)
        except FileExistsError:  # raised by os.link: the first one stays
            pass
        except OSError:  # a file system without links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
