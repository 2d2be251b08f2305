"""A causal language model of Hugging Face ``transformers`` as a ``latent_tokens.Model``.

``Pretrained(model)`` freezes it, tries it on 16 slots, and raises UserError where it is not right.
Layers that do not see all slots (windows) are decoded row by row, since padding would count.
"""

from contextlib import suppress
import inspect
import re
import warnings

import torch
from torch import nn

from model import UserError

POSITIONS = [0, 0, 1, 1, 2, 3, 3, 4]  # of the slots that are tried, and their places in two rows
PLACES = [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], [[6, 0], [4, 5]], [[7, 8, 0], [6, 7, 8]]


class Pretrained:
    def __init__(self, model):
        self.model, self.device = model.eval().requires_grad_(False), model.device
        self.name, self.config = type(model).__name__, model.config.get_text_config()
        table, settings = model.get_input_embeddings(), self.config.to_dict()
        self.embed = lambda token_ids: table(token_ids) * self.scale
        self.embed_last = lambda rows: self.embed(
            torch.tensor([row[-1:] for row in rows], device=self.device))
        sizes = (size for key, size in settings.items() if type(size) is int and size > 0
                 and re.search("(window|chunk)(_size)?$|^local_attention$", key))
        self.window = min(sizes, default=float("inf"))
        taken = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in taken else "past_key_values"  # before 5.24.0
        if re.search("longrope|dynamic", str(settings.get("rope_parameters"))):
            warnings.warn(f"{self.name}: beyond its original length all positions turn: stay below")
        try:
            self.try_slots()
        except Exception as error:
            raise UserError(f"{self.name} does not take latents: {error}") from error

    @torch.no_grad()
    def try_slots(self):
        first = self.config.pad_token_id or 0  # which Roberta's own position ids begin after
        random = torch.Generator().manual_seed(0)
        words = torch.randint(self.config.vocab_size, (99,), generator=random).to(self.device)
        words = words[words != first][:16].view(2, 8)
        positions = torch.arange(8, device=self.device).expand(2, -1)
        ids = self.model(words, attention_mask=torch.ones_like(words), use_cache=False).logits
        multiplier = getattr(self.config, "embedding_multiplier", 1)  # Falcon-H1's: of ids alone
        for self.scale, self.offset in (1, 0), (multiplier, 0), (1, 1 + first):
            if same := self.agree(self(self.embed(words), positions), ids.float()):
                break
        if not same:
            raise UserError("words are more than embeddings (inputs per layer? a multiplier?)")
        positions = torch.tensor([POSITIONS] * 2, device=self.device)
        logits = self(slots := self.embed(words) * 1.1, positions)  # no words, as latents are none
        if torch.equal(self(slots, 2 * positions), logits):
            warnings.warn(f"{self.name} ignores position ids: a latent has a position of its own")
        self.try_cache(slots, positions, logits)

    def try_cache(self, slots, positions, logits):
        right, layers = [], set(getattr(self.config, "layer_types", None) or ())
        for self.way in "batch", "rows", "rows, the library's cache":
            with suppress(Exception):
                right += [self.way] * self.decodes(slots, positions, logits)
        self.hides = "batch" in right  # its padding is hidden by a mask
        all_seen = self.window == float("inf") and layers <= {"full_attention"}
        right = right[self.hides and not all_seen:]
        if not right:
            raise UserError("with a cache it gives other logits, by rows, too")
        self.way = right[0]
        if self.way != "batch":
            warnings.warn(f"{self.name} is decoded by rows: padding would count")

    def decodes(self, slots, positions, logits):
        cache, right = self.make_cache(2), True
        for places in (torch.tensor(each, device=self.device) for each in PLACES):
            slot, new = (places - 1).clamp(min=0), places > 0
            got = self(slots.take_along_dim(slot[..., None], 1), positions.take_along_dim(slot, 1),
                       None, cache, places)
            right &= self.agree(got[new], logits.take_along_dim(slot[..., None], 1)[new])
        return right

    def agree(self, logits, expected):  # (..., V), but for rounding
        error = (logits - expected).square().mean(dim=-1).sqrt().max() / expected.std()
        return bool(error <= max(0.003, 8 * torch.finfo(self.model.dtype).eps))

    def make_cache(self, batch_size):
        from transformers import DynamicCache  # forgets nothing: windows are the mask's business
        return [{"stored": None if "library" in self.way else DynamicCache()}
                for _ in range(1 if self.way == "batch" else batch_size)]

    def __call__(self, embeddings, position_ids, attention_mask=None, cache=None, places=None):
        if cache is None:
            cache, places = [{}], torch.ones_like(position_ids)
        logits, T = [], places.shape[1]
        for i, part in enumerate(cache):
            some = slice(i, i + 1) if len(cache) > 1 else slice(None)
            new = int(places[some].any(dim=0).nonzero().max()) + 1  # the rest is padding
            mask = None if attention_mask is None else attention_mask[some, :new, :new]
            some_logits = self.step(embeddings[some, :new], position_ids[some, :new], mask, part,
                                    places[some, :new])
            logits.append(nn.functional.pad(some_logits, (0, 0, 0, T - new)))
        return torch.cat(logits)

    def step(self, embeddings, position_ids, attention_mask, part, places):
        old = part.get("places", places[:, :0])  # (B, columns of the cache)
        old = old.masked_fill((old[:, :, None] == places[:, None]).any(dim=2), 0)  # overwritten
        mask = part["places"] = torch.cat([old, places], dim=1)  # 0: hidden
        if attention_mask is not None or len(mask) == 1 and not mask.all():
            if not self.hides or mask.shape[1] > self.window:
                raise UserError(f"{self.name} cannot hide slots (-latest), or only within a window")
        mask = (mask > 0).long()
        if attention_mask is not None:  # added to the scores: eager knows no other
            mask = (~attention_mask[:, None]).to(embeddings) * torch.finfo(embeddings.dtype).min
        stored = {self.cache_name: part["stored"]} if "stored" in part else {}
        output = self.model(inputs_embeds=embeddings.clone(), attention_mask=mask, **stored,
                            position_ids=position_ids + self.offset, use_cache=bool(stored))
        part["stored"] = output.get(self.cache_name)
        return output.logits.float()
