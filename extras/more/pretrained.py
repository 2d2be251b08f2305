"""A causal language model of Hugging Face ``transformers`` as a ``latent_tokens.Model``.

``Pretrained(model)`` freezes it and tries it on 16 slots. Refused (UserError) is one that does more
with words than look up embeddings, or whose slots are not told by those before. ``way`` says how a
cache gives the logits that are given without: of a batch, of one row at a time, or not at all.
Layers that do not see all slots (windows, chunks) take one row: padding would count. Masks are the
library's own, made from (B, slots); -latest alone needs (B, 1, T, T), which replaces its windows.
"""

from contextlib import suppress
import inspect
import math
import re
import warnings

import torch
from torch import Tensor
import torch.nn.functional as F

from model import UserError

CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # from 5.24.0 on, and before
POSITIONS = [0, 0, 1, 1, 2, 3, 3, 4]  # of the slots of each of the two rows that are tried
PLACES = [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], [[6, 0], [4, 5]], [[7, 8, 0], [6, 7, 8]]  # ragged
WINDOW = re.compile(r"(window|chunk)(_size)?$|^local_attention$")  # in a configuration's keys


class Pretrained:
    def __init__(self, model):
        self.model, self.device = model.eval().requires_grad_(False), model.device
        self.name, self.config = type(model).__name__, model.config.get_text_config()
        self.table, self.way, self.hides = model.get_input_embeddings(), None, True
        names, settings = inspect.signature(model.forward).parameters, self.config.to_dict()
        self.cache_name = next((name for name in CACHE_NAMES if name in names), "cache")
        self.window = min((size for key, size in settings.items() if WINDOW.search(key)
                           and type(size) is int and size > 0), default=math.inf)
        rotary, longest = str(settings.get("rope_parameters")), settings.get(
            "original_max_position_embeddings") or settings.get("max_position_embeddings")
        self.longest = longest if re.search("longrope|dynamic", rotary) else math.inf
        try:
            with torch.no_grad():
                self.try_slots()
        except Exception as error:
            raise UserError(f"{self.name} does not fit latent tokens: {error}") from error

    def try_slots(self) -> None:
        special = {self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id}
        words = torch.randperm(self.config.vocab_size, generator=torch.Generator().manual_seed(0))
        words = [word for word in words.tolist() if word not in special][:2 * len(POSITIONS)]
        token_ids = torch.tensor(words, device=self.device).view(2, -1)
        self.try_words(token_ids)
        slots = self.embed(token_ids) * 1.1  # no words, as latents are none
        positions = torch.tensor(POSITIONS, device=self.device).expand_as(token_ids)
        logits = self(slots, positions)
        if self.differ(logits[1:, :5], self(slots[1:, :5], positions[1:, :5])):
            raise UserError("it is not causal, or counts padding on the right")
        first = torch.cat([-slots[:, :1], slots[:, 1:]], dim=1)
        if torch.equal(self(first, positions)[:, 1:], logits[:, 1:]):
            raise UserError("it forgets all where a position id is 0")
        if torch.equal(self(slots, 2 * positions), logits):
            self.say("ignores position ids: latents have positions of their own")
        self.try_ways(slots, positions, logits)

    def try_words(self, token_ids: Tensor) -> None:
        """Words as embeddings and as ids, with what is known to mend a difference."""
        expected = self.model(token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
        positions = torch.arange(token_ids.shape[1], device=self.device).expand_as(token_ids)
        for self.scale, self.offset in (
                (1, 0), (getattr(self.config, "embedding_multiplier", 1), 0),  # Falcon-H1
                (self.table(token_ids).shape[2] ** 0.5, 0),  # Mvp
                (1, 1 + (self.config.pad_token_id or 0))):  # Roberta
            if not self.differ(self(self.embed(token_ids), positions), expected.logits.float()):
                return
        per_layer = "per_layer_input" in str(self.config.to_dict())
        raise UserError("it does more with token ids than look up embeddings"
                        + per_layer * ": it has inputs to each layer, too")

    def try_ways(self, slots: Tensor, positions: Tensor, logits: Tensor) -> None:
        """Which way of decoding gives the same logits? And can slots be hidden?"""
        layers, ways = set(getattr(self.config, "layer_types", None) or ()), []
        all_seen = self.window == math.inf and layers <= {"full_attention"}
        for self.way in ("batch", "rows", "rows, own cache"):
            with suppress(Exception):
                if self.decodes(slots, positions, logits):
                    ways.append(self.way)
        self.way = next((way for way in ways if all_seen or way != "batch"), None)
        seen = torch.ones(2, len(POSITIONS), len(POSITIONS), device=self.device).tril().bool()
        seen[:, 3:, :3], can_hide = False, False
        with suppress(Exception):
            can_hide = not self.differ(self(slots, positions, seen)[:, 3:],
                                       self(slots[:, 3:], positions[:, 3:]))
        self.hides = can_hide and "batch" in ways
        if self.way != "batch":
            self.say("is decoded one row at a time: padding would change its logits" if self.way
                     else "can be tuned, not decoded: a cache would change its logits")

    def decodes(self, slots: Tensor, positions: Tensor, expected: Tensor) -> bool:
        cache = self.make_cache(2)
        for places in PLACES:
            places = torch.tensor(places, device=self.device)
            slot, new = (places - 1).clamp(min=0), places > 0
            logits = self(slots.take_along_dim(slot[..., None], 1),
                          positions.take_along_dim(slot, 1), None, cache, places)
            if self.differ(logits[new], expected.take_along_dim(slot[..., None], 1)[new]):
                return False
        return True

    def differ(self, logits: Tensor, expected: Tensor) -> bool:
        """By more than rounding, at any slot? Each (..., V)."""
        error = (logits - expected).square().mean(dim=-1).sqrt().max()
        return not error <= max(0.003, 8 * torch.finfo(self.model.dtype).eps) * expected.std()

    def say(self, note: str) -> None:
        warnings.warn(f"{self.name} {note}", stacklevel=4)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.table(token_ids) * self.scale

    def embed_last(self, rows: list[list[int]]) -> Tensor:
        return self.embed(torch.tensor([row[-1:] for row in rows], device=self.device))

    def make_cache(self, batch_size: int) -> list[dict]:
        """One for all rows, or one for each, with the places of what is stored."""
        if self.way is None:
            raise UserError(f"{self.name} can be tuned, not decoded: a cache changes its logits")
        from transformers import DynamicCache  # unlike the library's choice, it drops nothing
        B = batch_size if self.way == "batch" else 1
        return [{"stored": None if self.way.endswith("own cache") else DynamicCache(),
                 "places": torch.zeros(B, 0, dtype=torch.long, device=self.device)}
                for _ in range(0, batch_size, B)]

    def __call__(self, embeddings: Tensor, position_ids: Tensor,
                 attention_mask: Tensor | None = None, cache: list[dict] | None = None,
                 places: Tensor | None = None) -> Tensor:
        if cache is None:
            return self.logits(embeddings, position_ids, attention_mask)
        B, T = places.shape
        rows, logits = B // len(cache), []
        for start, part in zip(range(0, B, rows), cache):
            new = int(places[start:start + rows].any(dim=0).nonzero().max()) + 1  # then padding
            some = slice(start, start + rows), slice(new)
            mask = None if attention_mask is None else attention_mask[some][..., :new]
            logits.append(F.pad(self.logits(embeddings[some], position_ids[some], mask, part,
                                            places[some]), (0, 0, 0, T - new)))
        return torch.cat(logits)

    def logits(self, embeddings, position_ids, attention_mask, part=None, places=None) -> Tensor:
        mask, stored = torch.ones_like(position_ids), {}
        if part is not None:
            old = part["places"]  # (B, columns); overwritten ones are hidden
            old = old.masked_fill((old[:, :, None] == places[:, None]).any(dim=2), 0)
            mask = part["places"] = torch.cat([old, places], dim=1)
            stored = {self.cache_name: part["stored"]}
        if attention_mask is not None or len(mask) == 1 and not mask.all():
            if not self.hides or mask.shape[1] > self.window:
                raise UserError(f"{self.name} cannot hide slots (-latest), or not as many")
        if position_ids.max() >= self.longest:
            raise UserError(f"{self.name} turns all positions anew from {self.longest} on")
        mask = (mask > 0).long()
        if attention_mask is not None:
            mask = torch.zeros_like(attention_mask, dtype=embeddings.dtype)[:, None]
            mask = mask.masked_fill(~attention_mask[:, None], torch.finfo(mask.dtype).min)
        output = self.model(inputs_embeds=embeddings.clone(), attention_mask=mask, **stored,
                            position_ids=position_ids + self.offset, use_cache=part is not None)
        if part is not None:
            part["stored"] = output[self.cache_name]
        return output.logits.float()
