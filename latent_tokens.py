"""Latent tokens: learnable vectors inserted between the verbal tokens of a frozen Transformer.

The method of Sun, Chen, Li, Ding, "Enhancing Latent Computation in Transformers with Latent
Tokens", arXiv 2505.12629: placement, insertion, position sharing, targets, decoding. Below, <S> and
<C> are latents of ``Start_1+Comma_1``; the query is ``1,2``, the response ``3,4``.

                   query                          response
    slot           0    1    2    3    4          5    6    7    8
    input         <S>   1   <C>   ,    2          3   <C>   ,    4
    position_id    0    0    1    1    2          3    4    4    5
    predicts                           3          ,         4

* A latent takes the position id of the verbal token after it, so verbal tokens keep the ids that
  they would have without latents (here 0 1 2 3 4 5): inserting latents moves nothing.
* Latents have no targets and cannot be sampled: logits range over the vocabulary alone.
* A response token is read off the last slot fed before it: the first one off the end of the
  augmented query (an End latent, where there is one), a later one off the *verbal* token before it.
  After ``3`` comes ``,``, and only once ``,`` is known is <C> inserted before it, and both are fed.

    the paper     here            shape    meaning
    m             Group.m                  latents in a group
    u_1 ... u_m   LatentTokens    (M, D)   the vectors of all groups, one row each
    s_1 ... s_t   token_ids       (B, N)   verbal tokens: query, then response, then padding
    {s, u}        sources         (B, T)   of each slot: j < M for latent j, M + t for token t

Latents and tokens are counted from 0. Letters as in model.py, and R response tokens.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
import re

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from model import GPT, LOOK_BACK, KVCache
from tasks import NOT_SCORED, TOKEN_ID

SEPARATORS = {"Comma": (TOKEN_ID[","],)}  # name in a placement -> the token ids it stands before
OWN_POSITIONS = "-own"  # ends a placement whose latents do not share positions


class UserError(ValueError):
    """A mistake of the user's, not of the code's: train.py prints it as one line."""


# ------------------------------------------------------------------------------------- placement

@dataclass(frozen=True)
class Group:
    """m latents that always stand together, with vectors of their own (function specialization)."""

    places: tuple[str, ...]  # "Start", "End", a separator, or k (digits) for every k verbal tokens
    m: int
    separator_ids: frozenset[int] = frozenset()  # those of the separators among its places

    def stands_before(self, t: int, token_id: int | None, query_length: int) -> bool:
        """Does the group stand before verbal token t = 0, 1, ... of a row? (None: not known yet)"""
        for place in self.places:
            if (place, t) in (("Start", 0), ("End", query_length)):
                return True
            if place.isdigit() and t > 0 and t % int(place) == 0:
                return True
        return token_id in self.separator_ids

    def __str__(self) -> str:
        return f"{','.join(self.places)}_{self.m}"


@dataclass(frozen=True)
class Placement:
    """Where latents go. Before the same token: in the order Start, End, k_m, separators.

    A group that stands in several places has the rank of the first that it names.
    """

    groups: tuple[Group, ...] = ()
    share_positions: bool = True  # False: every slot, latent or verbal, has a position of its own

    @classmethod
    def parse(cls, notation: str,
              separators: Mapping[str, Collection[int]] = SEPARATORS) -> "Placement":
        """``Placement.parse("Start_1+Comma_1")``. Raises UserError on any other notation.

        separators: the token ids that count as a comma (in another tokenizer), or more separators.
        """
        names, groups = ["Start", "End", *separators], []
        name = rf"(?:{'|'.join(names)}|[1-9][0-9]{{0,2}})"
        pattern = re.compile(rf"({name}(?:,{name})*)_([1-9][0-9]{{0,2}})")
        for term in notation.removesuffix(OWN_POSITIONS).split("+"):
            match = pattern.fullmatch(term)
            if not match:
                raise UserError(f"unknown placement {notation!r}: expected {'_m, '.join(names)}_m, "
                                "k_m (m latents after every k verbal tokens), a sum such as "
                                "Start_1+Comma_1, or Start,Comma_1 for the same latents in two "
                                "places, with m and k from 1 to 999; -own at its end gives "
                                "latents positions of their own")
            places = tuple(match[1].split(","))
            separator_ids = frozenset().union(*(separators.get(each, ()) for each in places))
            groups.append(Group(places, int(match[2]), separator_ids))
        places = [place for group in groups for place in group.places]
        if len(set(places)) < len(places):
            raise UserError(f"placement {notation!r} names a place twice: add up its m instead")
        rank = {"Start": 0, "End": 1} | dict.fromkeys(separators, 3)  # and 2 for k_m
        groups.sort(key=lambda group: (rank.get(group.places[0], 2), group.places))
        return cls(tuple(groups), share_positions=not notation.endswith(OWN_POSITIONS))

    @property
    def total(self) -> int:  # M
        return sum(group.m for group in self.groups)

    def latents_before(self, t: int, token_id: int | None, query_length: int) -> list[int]:
        """The latents that stand before verbal token t of a row, in slot order.

        As long as the token is unknown (None), those before a separator have to wait for it.
        """
        latents, first = [], 0
        for group in self.groups:
            if group.stands_before(t, token_id, query_length):
                latents += range(first, first + group.m)
            first += group.m
        return latents

    def __str__(self) -> str:
        return "+".join(map(str, self.groups)) + ("" if self.share_positions else OWN_POSITIONS)


# ------------------------------------------------------------------------------------- insertion

class AugmentedRow:
    """One query, and its response as far as it is known, with the latents of a placement inserted.

    Training appends the true response, decoding what the model chooses; the next token is read off
    the last slot. Raises ValueError on an empty query, which has no last slot.
    """

    def __init__(self, placement: Placement, query: Sequence[int]):
        if not query:
            raise ValueError("a query needs at least one token")
        self.placement, self.query_length = placement, len(query)
        self.token_ids: list[int] = []  # verbal tokens
        self.sources: list[int] = []  # one a slot: j < M for latent j, M + t for verbal token t
        self.position_ids: list[int] = []  # one a slot
        self.fed = 0  # slots that decoding has fed
        for token_id in query:
            self.append(token_id)
        self.ending_query = placement.latents_before(len(query), None, len(query))
        self.insert(self.ending_query, len(query))

    def append(self, token_id: int) -> None:
        """Append a verbal token, after the latents that stand before it."""
        t = len(self.token_ids)
        latents = self.placement.latents_before(t, token_id, self.query_length)
        if t == self.query_length:  # End and k_m end the query already; separators had to wait
            latents = [latent for latent in latents if latent not in self.ending_query]
        self.insert([*latents, self.placement.total + t], t)
        self.token_ids.append(token_id)

    def insert(self, sources: list[int], t: int) -> None:
        """Append slots. Where positions are shared, all take the position id of verbal token t."""
        if self.placement.share_positions:
            self.position_ids += [t] * len(sources)
        else:
            self.position_ids += range(len(self.sources), len(self.sources) + len(sources))
        self.sources += sources

    def take_new_slots(self) -> tuple[list[int], list[int]]:
        """Sources and position ids of the slots that are not fed yet, and from now on are."""
        new = slice(self.fed, len(self.sources))
        self.fed = new.stop
        return self.sources[new], self.position_ids[new]


def pad(rows: Sequence[list[int]], value: int = 0, device=None) -> Tensor:
    """Rows of unequal length, padded on the right: (B, longest)."""
    longest = max(map(len, rows))
    padded = [row + [value] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device)


@dataclass(frozen=True)
class Batch:
    """Augmented rows for training. Padding is on the right, where causal order hides it."""

    token_ids: Tensor  # (B, N), query and response
    sources: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    read_slots: Tensor  # (B, R): the slot whose output predicts each response token
    targets: Tensor  # (B, R): the response tokens, NOT_SCORED where a row has fewer


def make_batch(placement: Placement, queries: list[list[int]], responses: list[list[int]],
               device=None) -> Batch:
    """Insert the latents of a placement into queries with their true responses (token ids)."""
    rows = [AugmentedRow(placement, query) for query in queries]
    read_slots = [[] for _ in rows]
    for row, read, response in zip(rows, read_slots, responses, strict=True):
        for token_id in response:
            read.append(len(row.sources) - 1)
            row.append(token_id)
    return Batch(pad([row.token_ids for row in rows], device=device),
                 pad([row.sources for row in rows], device=device),
                 pad([row.position_ids for row in rows], device=device),
                 pad(read_slots, device=device), pad(responses, NOT_SCORED, device))


class LatentTokens(nn.Module):
    """The M learnable vectors of a placement, and nothing else. A file of them takes a few KB."""

    def __init__(self, placement: Placement, n_embd: int):
        super().__init__()
        self.placement = placement
        self.vectors = nn.Parameter(torch.zeros(placement.total, n_embd))  # (M, D)

    @torch.no_grad()
    def initialize(self, token_embedding: Tensor, generator: torch.Generator) -> None:
        """Start near the mean of the vocabulary's embeddings (V, D); unknown in the paper."""
        noise = torch.randn(self.vectors.shape, generator=generator).to(self.vectors.device)
        self.vectors.copy_(token_embedding.mean(dim=0) + 0.1 * token_embedding.std(dim=0) * noise)

    def embed(self, sources: Tensor, verbal: Tensor) -> Tensor:
        """Embeddings (B, T, D) of the slots, from those of the row's verbal tokens (B, N, D).

        A latent is its vector wherever it stands, and a verbal token's embedding sees no latent.
        """
        table = torch.cat([self.vectors.expand(len(verbal), -1, -1), verbal], dim=1)  # (B, M+N, D)
        return table.gather(1, sources[..., None].expand(-1, -1, verbal.shape[2]))

    def save(self, path) -> None:
        torch.save({"placement": str(self.placement), "vectors": self.vectors.detach().cpu()}, path)

    @classmethod
    def load(cls, path, n_embd: int, separators=SEPARATORS) -> "LatentTokens":
        """Read what ``save`` wrote. Raises UserError if it is no such file or does not fit."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            latents = cls(Placement.parse(saved["placement"], separators), n_embd)
            latents.load_state_dict({"vectors": saved["vectors"]})
        except Exception as error:  # torch.load raises half a dozen types on a damaged file
            raise UserError(f"{path} does not hold latents of width {n_embd}") from error
        return latents


def response_logits(model: GPT, latents: LatentTokens, batch: Batch) -> Tensor:
    """Logits (B, R, V) for every response token, each from the slot that decoding reads it off."""
    embeddings = latents.embed(batch.sources, model.embed(batch.token_ids))  # (B, T, D)
    logits = model(embeddings, batch.position_ids)  # (B, T, V)
    return logits.gather(1, batch.read_slots[..., None].expand(-1, -1, logits.shape[2]))


def response_loss(model: GPT, latents: LatentTokens, batch: Batch) -> Tensor:
    """Mean next-token cross-entropy, in nats, over the verbal tokens of the responses."""
    logits = response_logits(model, latents, batch)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOT_SCORED)


@torch.no_grad()
def generate(model: GPT, latents: LatentTokens, queries: list[list[int]], max_new_tokens: int,
             stop_id: int | None = None, reminder: Sequence[int] = (),
             comma_ids: Collection[int] = SEPARATORS["Comma"]) -> list[list[int]]:
    """Greedy decoding with a KV cache; returns the token ids of each response.

    A response ends with ``stop_id`` (included) or after ``max_new_tokens``. The tokens of
    ``reminder`` follow every comma that the model writes, as part of the response. Positions past
    ``block_size`` are not refused, though no base knows them. Raises ValueError on an empty query.
    """
    rows = [AugmentedRow(latents.placement, query) for query in queries]
    reminders = [deque() for _ in rows]  # what is still due of one, in each row
    groups = latents.placement.groups
    recurring = sum(group.m for group in groups if set(group.places) - {"Start", "End"})
    capacity = max(len(row.sources) for row in rows) + max_new_tokens * (1 + recurring)
    cache = KVCache(model.config, len(rows), capacity, model.device)
    verbal = model.embed(pad(queries, device=model.device))  # (B, N, D)
    responses, finished = [[] for _ in rows], set()
    for _ in range(max_new_tokens):
        for b, token_id in enumerate(next_token_ids(model, latents, rows, verbal, cache)):
            if reminders[b]:
                token_id = reminders[b].popleft()
            elif token_id in comma_ids:
                reminders[b].extend(reminder)
            rows[b].append(token_id)
            if b not in finished:
                responses[b].append(token_id)
            if token_id == stop_id:
                finished.add(b)
        if len(finished) == len(rows):
            break
        recent = [([model.nothing] * LOOK_BACK + row.token_ids)[-1 - LOOK_BACK:] for row in rows]
        verbal = model.embed(torch.tensor(recent, device=model.device))[:, -1:]  # (B, 1, D)
    return responses


def next_token_ids(model: GPT, latents: LatentTokens, rows: list[AugmentedRow], verbal: Tensor,
                   cache: KVCache) -> list[int]:
    """Feed the new slots of each row, with the embeddings of its new verbal tokens (B, N, D): the
    query, later one token. Returns each row's most probable next token."""
    new_sources, position_ids = zip(*(row.take_new_slots() for row in rows))
    lengths = torch.tensor([[len(sources)] for sources in new_sources], device=model.device)
    # After the queries ``verbal`` holds the new token alone: all sources from M on mean that one.
    last_source = latents.placement.total + verbal.shape[1] - 1
    sources = pad(new_sources, device=model.device).clamp(max=last_source)  # (B, T)
    attention_mask = torch.arange(sources.shape[1], device=model.device) < lengths  # (B, T)
    logits = model(latents.embed(sources, verbal), pad(position_ids, device=model.device),
                   attention_mask, cache)  # (B, T, V)
    return logits.take_along_dim(lengths[..., None] - 1, dim=1)[:, 0].argmax(dim=-1).tolist()
