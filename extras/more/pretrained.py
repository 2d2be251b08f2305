"""A causal language model of Hugging Face ``transformers`` as a ``latent_tokens.Model``.

``Pretrained(model)`` freezes it, tries it on 16 slots, and raises UserError where it is not right.
Layers that do not see all slots (windows) are decoded row by row, since padding would count."""

import inspect
from math import inf
import re
import warnings

import torch

from model import UserError, pad

POSITIONS = [0, 0, 1, 1, 2, 3, 3, 4]  # of the slots that are tried, and their places in two rows
PLACES = [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], [[6, 0], [4, 5]], [[7, 8, 0], [6, 7, 8]]


class Pretrained:
    def __init__(self, model):
        self.model, self.device = model.eval().requires_grad_(False), model.device
        self.name, self.config = type(model).__name__, model.config.get_text_config()
        table, settings = model.get_input_embeddings(), self.config.to_dict()
        self.embed = lambda token_ids: table(token_ids) * self.scale
        self.embed_last = lambda rows: self.embed(pad([row[-1:] for row in rows], 0, self.device))
        self.window = min((size for key, size in settings.items() if type(size) is int and size > 0
                           and re.search("(window|chunk)(_size)?$|^local_attention$", key)),
                          default=inf)
        rope = str(settings.get("rope_parameters"))
        original = re.findall("original_max_position_embeddings': ([0-9]+)", rope)
        turns = re.search("longrope|dynamic", rope)  # all positions, beyond the original length
        self.longest = int([*original, settings["max_position_embeddings"]][0]) if turns else inf
        self.taken = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in self.taken else "past_key_values"  # before 5.24.0
        try:
            self.try_slots()
        except Exception as error:
            raise UserError(f"{self.name} does not take latents: {error}") from error

    @torch.no_grad()
    def try_slots(self):
        first = getattr(self.config, "pad_token_id", 0) or 0  # Roberta's positions begin after it
        V, n = self.config.vocab_size, torch.arange(16, device=self.device).view(2, 8)
        words, positions = (first + 1 + n * max(1, V // 17)) % V, n % 8  # no padding
        ids = self.model(words, attention_mask=torch.ones_like(words), use_cache=False).logits
        multiplier = getattr(self.config, "embedding_multiplier", 1)  # Falcon-H1's: of ids alone
        for self.scale, self.offset in (1, 0), (multiplier, 0), (1, 1 + first):
            if self.agree(self(self.embed(words), positions), ids.float()):
                break
        else:
            raise UserError("ids are more than embeddings (inputs of each layer? a multiplier?)")
        positions = torch.tensor([POSITIONS] * 2, device=self.device)
        logits = self(slots := self.embed(words) * 1.1, positions)  # no words, as latents are none
        if torch.equal(self(slots, 2 * positions), logits):
            warnings.warn(f"{self.name} ignores position ids: a latent has a position of its own")
        self.try_cache(slots, positions, logits)

    def try_cache(self, slots, positions, logits):
        right, layers = [], set(getattr(self.config, "layer_types", None) or ())
        for self.way in "batch", "rows", "rows, the library's cache":
            try:
                cache = self.make_cache(2)
                for places in (torch.tensor(each, device=self.device) for each in PLACES):
                    slot, new = (places - 1).clamp(min=0)[..., None], places > 0
                    some = self(slots.take_along_dim(slot, 1),
                                positions.take_along_dim(slot[..., 0], 1), None, cache, places)
                    if not self.agree(some[new], logits.take_along_dim(slot, 1)[new]):
                        raise UserError("several slots a step restart its state, or see later ones")
                right.append(self.way)
            except Exception as error:
                reason = error
        self.hides = "batch" in right  # its padding is hidden by a mask
        if self.hides and (self.window < inf or layers - {"full_attention"}):
            right.remove("batch")
        if not right:
            raise UserError(f"with a cache, {reason}")
        self.way = right[0]
        if self.way != "batch":
            warnings.warn(f"{self.name} is decoded by rows: padding would count")

    def agree(self, logits, expected):  # (..., V), but for rounding
        error = (logits - expected).square().mean(dim=-1).sqrt().max() / expected.std()
        return bool(error <= max(0.003, 8 * torch.finfo(self.model.dtype).eps))

    def make_cache(self, batch_size):
        from transformers import DynamicCache  # forgets nothing: windows are the mask's business
        return [{self.cache_name: None if "library" in self.way else DynamicCache()}
                for _ in range(1 if self.way == "batch" else batch_size)]

    def __call__(self, embeddings, *arguments):
        slots = torch.arange(embeddings.shape[1], device=self.device).expand(len(embeddings), -1)
        return self.read(embeddings, slots, *arguments)

    def read(self, embeddings, slots, position_ids, mask=None, cache=({},), places=None):
        """Logits (B, R, V) of these slots (B, R): the head is applied to no others."""
        places = torch.ones_like(position_ids) if places is None else places
        if len(cache) > 1:
            return torch.cat([self.read(
                embeddings[i, None, :T], slots[i, None].clamp(max=T - 1), position_ids[i, None, :T],
                mask if mask is None else mask[i, None, :T, :T], [part], places[i, None, :T])
                for i, part in enumerate(cache) for T in [1 + int(places[i].nonzero().max())]])
        if position_ids.max() >= self.longest:
            raise UserError(f"{self.name}: from {self.longest} on all positions turn (longrope)")
        part = cache[0]
        old = part.pop("places", places[:, :0])  # (B, columns of the cache)
        old = old.masked_fill((old[:, :, None] == places[:, None]).any(dim=2), 0)  # overwritten
        all_places = torch.cat([old, places], dim=1)  # 0: hidden
        if mask is not None or len(places) == 1 and not all_places.all():
            if not self.hides or all_places.shape[1] > self.window:
                raise UserError(f"{self.name} cannot hide slots (-latest), or only within a window")
        mask = ((all_places > 0).long() if mask is None  # else added: eager knows no other
                else (~mask[:, None]).to(embeddings) * torch.finfo(embeddings.dtype).min)
        head = {}
        if "logits_to_keep" in self.taken:
            head["logits_to_keep"], slots = slots.unique(return_inverse=True)
        out = self.model(inputs_embeds=embeddings.clone(), position_ids=position_ids + self.offset,
                         attention_mask=mask, use_cache=bool(part), **part, **head)
        if part:
            part |= {self.cache_name: getattr(out, self.cache_name), "places": all_places}
        return out.logits.take_along_dim(slots[..., None], dim=1).float()
