"""Latent tokens: learnable vectors inserted between the verbal tokens of a frozen Transformer.

The method of Sun, Chen, Li, Ding, "Enhancing Latent Computation in Transformers with Latent
Tokens", arXiv 2505.12629. Below, <S> and <C> are the latents of ``Start_1+Comma_1``, one at the
start and one before each comma; the query is ``1,2``, the response ``3,4``.

                   query                          response
    slot           0    1    2    3    4          5    6    7    8
    input         <S>   1   <C>   ,    2          3   <C>   ,    4
    position_id    0    0    1    1    2          3    4    4    5
    predicts                           3          ,         4

* A latent takes the position id of the verbal token after it, so verbal tokens keep the ids that
  they would have without latents (here 0 1 2 3 4 5): inserting latents moves nothing.
* Latents have no targets and cannot be sampled: logits range over the vocabulary alone.
* A response token is read off the last slot fed before it: the first one off the end of the
  augmented query (perhaps a latent of End or k_m), a later one off the *verbal* token before it.
  After ``3`` comes ``,``, and only once ``,`` is known is <C> inserted before it, and both are fed.
  So no latent of Comma_m announces a comma: where one opens a response, no latent calls for it.

    the paper     here            shape    meaning
    m             Group.m                  latents in a group
    u_1 ... u_m   LatentTokens    (M, D)   the vectors of all groups, one row each
    s_1 ... s_t   token_ids       (B, N)   verbal tokens: query, then response, then padding
    {s, u}        sources         (B, T)   of each slot: j < M for latent j, M + t for token t

j and t count from 0: above, M is 2, sources are 0 2 1 3 4 5 1 6 7. B rows, N tokens, T slots, width
D, R response tokens. Not in the paper: ``-latest``, which sees, and caches, only the newest copies.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from model import NOT_SCORED, UserError, pad, save_whole

SEPARATORS: dict[str, Collection[int]] = {}  # name -> before which tokens: tasks.py adds Comma
PLACES = {  # name -> do its latents come next? ``before``: the row's verbal tokens so far
    "Start": lambda before, query_length: not before,
    "End": lambda before, query_length: len(before) == query_length}
COUNTS = [str(n) for n in range(1, 1000)]  # m and k in a placement
OWN = "-own"  # after a placement whose latents do not share positions
LATEST = "-latest"  # after one (last of all) of whose latents only the newest copies are seen
NEVER = 2 ** 31  # later than any slot


class Model(Protocol):
    """All that is needed of a model: model.GPT has it, docs/huggingface.md adapts others."""

    device: torch.device
    embed: Callable[[Tensor], Tensor]  # verbal tokens (B, N) to embeddings (B, N, D)
    embed_last: Callable[[list[list[int]]], Tensor]  # the last token of each row: (B, 1, D)
    make_cache: Callable[[int], Any]  # for B rows
    __call__: Callable[..., Tensor]  # takes and returns what ``GPT.forward`` does


@dataclass(frozen=True)
class Group:
    """m latents that always stand together, with vectors of their own (function specialization)."""

    places: tuple[str, ...]  # of PLACES, of separators, or "8": after every 8 verbal tokens
    m: int
    separators: dict[str, frozenset[int]] = field(default_factory=dict, hash=False)  # token ids

    def stands_before(self, before: list[int], token_id: int | None, query_length: int) -> bool:
        """Does it stand after the verbal tokens ``before`` and before this one (None: unknown)?"""
        return any(token_id in self.separators[place] if place in self.separators
                   else PLACES[place](before, query_length) if place in PLACES
                   else before and len(before) % int(place) == 0 for place in self.places)


@dataclass(frozen=True)
class Placement:
    """Where latents go. Groups before the same token stand in the order of their first places:
    Start, End, k_m, separators. After a query, those that are known already come first."""

    groups: tuple[Group, ...] = ()
    share_positions: bool = True  # False: every slot, latent or verbal, has a position of its own
    latest_only: bool = False  # True: of each latent a slot sees only the newest copy

    @classmethod
    def parse(cls, notation: str,
              separators: Mapping[str, Collection[int]] = SEPARATORS) -> "Placement":
        """Read a notation such as Start_1+Comma_1; separators: the token ids of each by name."""
        order = [*PLACES, *sorted(COUNTS), *sorted(separators)]
        terms, groups = notation.removesuffix(LATEST), []
        for term in terms.removesuffix(OWN).split("+"):
            names, _, m = term.rpartition("_")
            if m not in COUNTS or not set(names.split(",")) <= set(order):
                known = "_m, ".join([*PLACES, *separators])
                raise UserError(f"unknown placement {notation!r}: expected {known}_m or k_m (after "
                                "every k tokens), m and k from 1 to 999, or a sum, as in "
                                "Start,Comma_1+8_2; then perhaps -own, -latest")
            places = tuple(sorted(names.split(","), key=order.index))
            groups.append(Group(places, int(m), {
                place: frozenset(map(index, separators[place]))
                for place in places if place in separators}))
        places = [place for group in groups for place in group.places]
        if len(set(places)) < len(places):
            raise UserError(f"placement {notation!r} names a place twice: give the sum of its m")
        groups.sort(key=lambda group: order.index(group.places[0]))
        return cls(tuple(groups), share_positions=not terms.endswith(OWN),
                   latest_only=terms != notation)

    @property
    def total(self) -> int:  # M
        return sum(group.m for group in self.groups)

    def latents_before(self, *where: Any) -> list[int]:
        """Those of all groups that stand before a token; where: as in ``stands_before``."""
        latents, first = [], 0
        for group in self.groups:
            if group.stands_before(*where):
                latents += range(first, first + group.m)
            first += group.m
        return latents

    def __str__(self) -> str:
        terms = [f"{','.join(group.places)}_{group.m}" for group in self.groups]
        return "+".join(terms) + OWN * (not self.share_positions) + LATEST * self.latest_only


class AugmentedRow:
    """A query with its latents, to which the response is appended, token by token, with its own."""

    def __init__(self, placement: Placement, query: Sequence[int]):
        if not len(query):
            raise ValueError("a query needs at least one token")
        self.placement, self.query_length = placement, len(query)
        self.token_ids: list[int] = []  # verbal tokens
        self.sources: list[int] = []  # one a slot: j < M for latent j, M + t for verbal token t
        self.position_ids: list[int] = []  # one a slot
        self.hidden_from: list[int] = []  # one a slot: the first slot that does not see it any more
        self.fed_tokens = self.fed_slots = 0  # what decoding has fed: verbal tokens, all slots
        self.already_there: list[int] = []  # latents that stand before the next verbal token
        for token_id in query:
            self.append(token_id)
        # Known by now: those of End, and of 8_2 after 8, 16, ... tokens. A comma's have to wait.
        self.already_there = placement.latents_before(self.token_ids, None, len(query))
        self.insert(self.already_there)

    def append(self, token_id: int) -> None:
        """Append a verbal token, after its latents: those that do not end the query already."""
        token_id = index(token_id)  # numpy's and torch's integers, too
        latents = self.placement.latents_before(self.token_ids, token_id, self.query_length)
        missing = [latent for latent in latents if latent not in self.already_there]
        self.insert([*missing, self.placement.total + len(self.token_ids)])
        self.token_ids.append(token_id)
        self.already_there = []

    def insert(self, sources: list[int]) -> None:
        """Append slots. Where positions are shared, all take the position id of the verbal token t
        to come; where the latest alone is seen, their older copies are hidden from here on."""
        t, slots = len(self.token_ids), range(len(self.sources), len(self.sources) + len(sources))
        if self.placement.latest_only:
            self.hidden_from = [min(until, slots.start) if source in sources else until
                                for source, until in zip(self.sources, self.hidden_from)]
        self.sources += sources
        self.position_ids += [t] * len(slots) if self.placement.share_positions else slots
        self.hidden_from += [NEVER] * len(slots)

    def take_new_slots(self) -> tuple[list[int], list[int], list[int]]:
        """Sources, position ids and places in the KV cache of the slots not fed yet, which now
        count as fed. Here source M is the first verbal token not fed yet: only these are embedded.
        With ``-latest`` a copy takes the place of the one before; hidden ones have place 0."""
        M, new = self.placement.total, slice(self.fed_slots, None)
        sources = [j if j < M else j - self.fed_tokens for j in self.sources[new]]
        own = self.sources if self.placement.latest_only else range(len(self.sources))
        places = [1 + place if hidden_from == NEVER else 0
                  for place, hidden_from in zip(own[new], self.hidden_from[new])]
        self.fed_slots, self.fed_tokens = len(self.sources), len(self.token_ids)
        return sources, self.position_ids[new], places


def visible(rows: list[AugmentedRow], device=None) -> Tensor | None:
    """What each slot sees, (B, T, T): slots up to itself, not hidden by then. None: all of them."""
    if not rows[0].placement.latest_only:
        return None
    hidden_from = pad([row.hidden_from for row in rows], NEVER, device)[:, None, :]  # (B, 1, T)
    slots = torch.arange(hidden_from.shape[2], device=device)
    return (slots <= slots[:, None]) & (slots[:, None] < hidden_from)


@dataclass(frozen=True)
class Batch:
    """Augmented rows for training. Padding is on the right, where causal order hides it."""

    token_ids: Tensor  # (B, N), query and response
    sources: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    attention_mask: Tensor | None  # (B, T, T): what each slot sees; None: all slots up to itself
    read_slots: Tensor  # (B, R): the slot whose output predicts each response token
    targets: Tensor  # (B, R): the response tokens, NOT_SCORED where a row has fewer


def make_batch(placement: Placement, queries: Sequence[Sequence[int]],
               responses: Sequence[Sequence[int]], device=None) -> Batch:
    """Insert the latents of a placement into queries with their true responses (token ids)."""
    rows = [AugmentedRow(placement, query) for query in queries]
    read_slots = [[] for _ in rows]
    for row, read, response in zip(rows, read_slots, responses, strict=True):
        for token_id in response:
            read.append(len(row.sources) - 1)
            row.append(token_id)
    return Batch(token_ids=pad([row.token_ids for row in rows], device=device),
                 sources=pad([row.sources for row in rows], device=device),
                 position_ids=pad([row.position_ids for row in rows], device=device),
                 attention_mask=visible(rows, device),
                 read_slots=pad(read_slots, device=device),
                 targets=pad([r.token_ids[r.query_length:] for r in rows], NOT_SCORED, device))


class LatentTokens(nn.Module):
    """The M learnable vectors of a placement, and nothing else. A file of them takes a few KB."""

    def __init__(self, placement: Placement, n_embd: int):
        super().__init__()
        self.placement = placement
        self.vectors = nn.Parameter(torch.zeros(placement.total, n_embd))  # (M, D)

    @torch.no_grad()
    def initialize(self, token_embedding: Tensor, generator: torch.Generator) -> None:
        """Start near the mean of the vocabulary's embeddings (V, D); the paper does not say how."""
        noise = torch.randn(self.vectors.shape, generator=generator).to(self.vectors.device)
        self.vectors.copy_(token_embedding.mean(dim=0) + 0.1 * token_embedding.std(dim=0) * noise)

    def embed(self, sources: Tensor, verbal: Tensor) -> Tensor:
        """Embeddings (B, T, D) of the slots, from those of each row's verbal tokens (B, N, D).
        A source is an index into the row's table: the M latents, then its N verbal tokens."""
        latents = self.vectors.to(verbal.dtype).expand(len(verbal), -1, -1)  # (B, M, D)
        table = torch.cat([latents, verbal], dim=1)  # (B, M + N, D)
        return table.take_along_dim(sources[..., None], dim=1)

    def save(self, path) -> None:
        separators = {name: sorted(token_ids) for group in self.placement.groups
                      for name, token_ids in group.separators.items()}
        save_whole({"placement": str(self.placement), "separators": separators,
                    "vectors": self.vectors.detach().cpu()}, path)

    @classmethod
    def load(cls, path, n_embd: int) -> "LatentTokens":
        """Read what ``save`` wrote. Raises UserError if it is no such file or of another width."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            latents = cls(Placement.parse(saved["placement"], saved["separators"]), n_embd)
            latents.load_state_dict({"vectors": saved["vectors"]})
        except Exception as error:  # torch.load raises half a dozen types on a damaged file
            raise UserError(f"{path} is missing, damaged, of another version or width") from error
        return latents


def read_logits(model: Model, latents: LatentTokens, sources: Tensor, verbal: Tensor, slots: Tensor,
                *arguments: Any) -> Tensor:
    """Feed the sources (B, T); returns logits (B, R, V) read off these slots (B, R)."""
    if hasattr(model, "read"):  # one that applies its head to these slots alone
        return model.read(latents.embed(sources, verbal), slots, *arguments)
    logits = model(latents.embed(sources, verbal), *arguments)  # (B, T, V)
    if (T := sources.shape[1]) != logits.shape[1]:
        raise ValueError(f"{logits.shape[1]} logits of {T} slots: does the model add its own?")
    return logits.take_along_dim(slots[..., None], dim=1)


def response_logits(model: Model, latents: LatentTokens, batch: Batch) -> Tensor:
    """Logits (B, R, V) for every response token, each from the slot that decoding reads it off."""
    return read_logits(model, latents, batch.sources, model.embed(batch.token_ids),
                       batch.read_slots, batch.position_ids, batch.attention_mask)


def response_loss(model: Model, latents: LatentTokens, batch: Batch) -> Tensor:
    """Mean next-token cross-entropy, in nats, over the verbal tokens of the responses."""
    logits = response_logits(model, latents, batch)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOT_SCORED)


@torch.no_grad()
def generate(model: Model, latents: LatentTokens, queries: Sequence[Sequence[int]],
             max_new_tokens: int, stop_id: int | Collection[int] = (),
             overrule: Callable[[list[int], int], int] | None = None) -> list[list[int]]:
    """The token ids of each response, by greedy decoding with a KV cache. A response ends with
    ``stop_id`` (or one of several), which is part of it, or after ``max_new_tokens``.
    ``overrule(token_ids, choice)`` may replace the model's choice, as by a reminder (train.py)."""
    if not latents.vectors.isfinite().all():
        raise UserError(f"{latents.placement}: the latents hold numbers that are not finite")
    try:
        stop_ids = {index(stop_id)}
    except TypeError:  # several
        stop_ids = {*map(index, stop_id)}
    rows = [AugmentedRow(latents.placement, query) for query in queries]
    verbal = model.embed(pad([row.token_ids for row in rows], device=model.device))  # (B, N, D)
    mask, cache = visible(rows, model.device), model.make_cache(len(rows))  # mask: of the query
    responses = [[] for _ in rows]
    for _ in range(max_new_tokens):  # feed first the query, then one verbal token after another
        new = [row.take_new_slots() for row in rows]
        sources, position_ids, places = (pad(each, device=model.device) for each in zip(*new))
        last = torch.tensor([[len(slots) - 1] for slots, *_ in new], device=model.device)  # (B, 1)
        logits = read_logits(model, latents, sources, verbal, last, position_ids, mask, cache,
                             places)  # (B, 1, V)
        for row, response, choice in zip(rows, responses, logits[:, 0].argmax(dim=-1).tolist()):
            row.append(overrule(row.token_ids, choice) if overrule else choice)
            if stop_ids.isdisjoint(response):  # a row that has stopped is fed on, for the others
                response.append(row.token_ids[-1])
        if not any(stop_ids.isdisjoint(response) for response in responses):
            break
        verbal, mask = model.embed_last([row.token_ids for row in rows]), None  # (B, 1, D)
    return responses
