"""A small GPT in plain PyTorch, and its pre-training: the base model that latent tokens steer.

It is a decoder-only Transformer (pre-norm, GELU, rotary positions) and it knows nothing of latent
tokens. One thing is out of the ordinary: an input embedding also sees the two verbal tokens before
its own (``GPT.embed``; the README says why). Two properties make it usable with latents:

    * positions are data. ``position_ids`` is an argument and two slots may share one id, which is
      how a latent token takes the position of the verbal token after it (latent_tokens.py);
    * what a slot may see is decided by *slot order* and by ``valid``, never by position id.

Letters used for shapes in every file:

    B  rows of the batch          H  heads                   V  size of the vocabulary
    N  verbal tokens              K  width of one head       M  latents (latent_tokens.py)
    T  slots fed in this call     D  width of the model, H * K
    S  slots visible in all (cached + fed)

Left out, on purpose: dropout, biases, weight tying, mixed precision.
"""

from dataclasses import asdict, dataclass, field
from itertools import chain, islice
import os
from pathlib import Path
from typing import Iterator
import zlib

import torch
from torch import Tensor, nn
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from tasks import ALPHABET


LOOK_BACK = 2  # verbal tokens before its own that an input embedding also sees


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = len(ALPHABET)
    context: int = 352  # position ids seen in pre-training: 0 ... context - 1
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
    """softmax(q k^T / sqrt(K)) v, written out: the mix (B, H, T, K), and weights (B, H, T, S)."""
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
        """x: (B, T, D); rotary: from ``rotary_tables``; the rest as in ``GPT.hidden_states``."""
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
        self.embeddings = nn.ModuleList(  # table i: of the verbal token i places back
            nn.Embedding(config.vocab_size + 1, config.width, padding_idx=config.vocab_size)
            for _ in range(1 + LOOK_BACK))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        for block in self.blocks:  # every block starts as the identity
            nn.init.zeros_(block.attention_out.weight)
            nn.init.zeros_(block.mlp_out.weight)
        nn.init.zeros_(self.head.weight)  # and the model starts by predicting uniformly

    @property
    def token_embedding(self) -> Tensor:
        """(V, D): the tokens themselves, without what stood before them."""
        return self.embeddings[0].weight[:self.config.vocab_size]

    def embed(self, token_ids: Tensor) -> Tensor:
        """x_t = E_0[s_t] + E_1[s_t-1] + E_2[s_t-2], (B, N, D), of consecutive verbal tokens (B, N).

        The id V stands for "nothing there" and adds nothing; so does all that is before the first.
        """
        N, nothing = token_ids.shape[1], self.config.vocab_size
        tokens = F.pad(token_ids, (LOOK_BACK, 0), value=nothing)  # (B, 2 + N)
        return sum(table(tokens[:, LOOK_BACK - back:][:, :N])
                   for back, table in enumerate(self.embeddings))

    def hidden_states(self, inputs: Tensor, position_ids: Tensor, valid: Tensor | None = None,
                      cache: KVCache | None = None, weights: list | None = None) -> Tensor:
        """Run the blocks and the final norm; returns (B, T, D).

        inputs: embeddings (B, T, D), floating point, or the token ids (B, T) of whole rows.
        position_ids: (B, T), integer. Slots may share an id and ids need not rise.
        valid: (B, T) bool, False for padding, which no other slot attends to; None = all valid.
        cache: slots fed before, seen by all of these; extended in place.
        weights: a list that receives each layer's attention weights (B, H, T, S), which takes the
            explicit softmax path in place of the fused one.

        Raises ValueError if position_ids or valid do not have the shape (B, T) of inputs, or if
        token ids continue a cache: their embeddings need the tokens before, so ``embed`` those too.
        """
        if cache is not None and cache.length and not inputs.is_floating_point():
            raise ValueError("token ids cannot continue a cache: pass embeddings, see GPT.embed")
        x = inputs if inputs.is_floating_point() else self.embed(inputs)  # (B, T, D)
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


# ------------------------------------------------------------------------------------ pre-training

@dataclass(frozen=True)
class PretrainConfig:
    steps: int = 1650
    rows: int = 11  # blocks per step
    shares: dict[str, float] = field(  # of the tasks in the characters of the text (tasks.py)
        default_factory=lambda: {"generation": 0.44, "repetition": 0.23, "summation": 0.33})
    muon_lr: float = 0.02  # for the matrices inside the blocks
    adam_lr: float = 3e-3  # for embeddings, norms and head
    warmup: int = 40  # steps
    decay: float = 0.5  # the last part of the steps, over which the learning rates fall to zero
    seed: int = 0
    model: GPTConfig = GPTConfig()


def schedule(optimizer: torch.optim.Optimizer, config, done: int = 0) -> LambdaLR:
    """Learning rates up over ``warmup`` steps, and down to zero over the last ``decay`` part."""
    return LambdaLR(optimizer, lambda step: min(
        1.0, (step + 1) / config.warmup, (config.steps - step) / (config.decay * config.steps)),
        last_epoch=done - 1)


def pretrain(config: PretrainConfig, batches: Iterator[Tensor], path: Path, device: str) -> GPT:
    """The frozen base: read from ``path`` if it is finished there, else trained (on) and saved.

    batches: token ids (B, context + 1), B = config.rows, the same at every call. Saves every 50
    steps, optimisers included, so that a run that was stopped ends up like an unstopped one.
    Raises ValueError if ``path`` cannot be read or was made with other settings or another text.
    """
    first = next(batches)
    batches = chain([first], batches)
    settings = asdict(config) | {"checksum of the text": zlib.crc32(first.numpy().tobytes())}
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    optimizers = model.configure_optimizers(config.muon_lr, config.adam_lr)
    done = resume(path, settings, model, optimizers) if path.exists() else 0
    schedules = [schedule(optimizer, config, done) for optimizer in optimizers]
    position_ids = torch.arange(config.model.context, device=device).expand(config.rows, -1)
    bar = tqdm(range(done, config.steps), initial=done, total=config.steps, desc="pre-training",
               disable=done == config.steps)
    batches = islice(batches, done, None)
    for step in bar:
        blocks = next(batches).to(device)
        logits = model(blocks[:, :-1], position_ids)  # (B, context, V)
        loss = F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        loss.backward()
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            save_atomically({"config": settings, "step": step + 1,
                             "model": model.state_dict(),
                             "optimizers": [each.state_dict() for each in optimizers]}, path)
    return model.requires_grad_(False).eval()


def resume(path: Path, settings: dict, model: GPT, optimizers: list) -> int:
    """Load a checkpoint into model and optimisers; returns the steps it has done."""
    unreadable = ValueError(f"{path} is not a readable base checkpoint: delete it or choose "
                            "another --out")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(saved["config"])
    except Exception as error:  # torch.load raises half a dozen types on a damaged file
        raise unreadable from error
    refuse_difference(path, found, settings)
    try:
        for part, state in zip((model, *optimizers), (saved["model"], *saved["optimizers"])):
            part.load_state_dict(state)
        return saved["step"]
    except (KeyError, RuntimeError) as error:  # made by another version of this code
        raise unreadable from error


def refuse_difference(path: Path, found: dict, wanted: dict, section: str = "") -> None:
    """Raises ValueError that names the first setting in which two configurations differ."""
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            refuse_difference(path, found[name], value, f"{section}{name}.")
        elif found.get(name) != value:
            raise ValueError(f"{path} was made with {section}{name} = {found.get(name)}, this run "
                             f"wants {value}: choose another --out, or the same settings "
                             "and text")


def save_atomically(content, path) -> None:
    """torch.save by way of a neighbour: a crash leaves the old file, never half a new one."""
    partial = f"{path}.partial"
    torch.save(content, partial)
    os.replace(partial, path)
