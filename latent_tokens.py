"""Latent tokens: learnable vectors inserted between the verbal tokens of a frozen Transformer.

Implements the method of Sun, Chen, Li, Ding, "Enhancing Latent Computation in Transformers with
Latent Tokens", arXiv 2505.12629: placement, insertion, position sharing, the training targets that
match decoding, and decoding itself. Only the latent vectors train; the base model stays as it is.

The one picture to keep in mind: ``Start_1+Comma_1``, query ``1,2``, response ``3,4``.
Latents are written <S> and <C>; <C> is the same vector wherever it stands.

    ------------------------------------------------------------------
                   query                          response
    slot           0    1    2    3    4          5    6    7    8
    input         <S>   1   <C>   ,    2          3   <C>   ,    4
    position_id    0    0    1    1    2          3    4    4    5
    read for                           3          ,         4
    ------------------------------------------------------------------

* A latent takes the position id of the verbal token after it, so verbal tokens keep the ids that
  they would have without latents (here 0 1 2 3 4 5): inserting latents moves nothing.
* Latents have no targets and cannot be sampled: logits range over the vocabulary alone.
* The first response token is read off the last slot of the augmented query (an End latent, where
  there is one); every later one off the *verbal* token before it, never off a latent: after ``3``
  comes ``,``, and only once ``,`` is known is <C> inserted before it and both are fed. Training
  reads the same slots (``AugmentedBatch.read_slots``).

    the paper     here            shape    meaning
    m             Group.m                  latents in a group
    u_1 ... u_m   LatentTokens    (M, D)   the vectors of all groups, one row each
    s_1 ... s_t   token_ids       (B, N)   verbal tokens: query, then response, then padding
    {s, u}        sources         (B, T)   what each slot holds: n < N for s_n, N + j for u_j

Letters: B rows, N verbal tokens, T slots after insertion, M latents of all groups, D width of the
model, V size of the vocabulary. Left out: sampling at a temperature (decoding is greedy).
"""

from dataclasses import dataclass
import re
from typing import Sequence

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from model import LOOK_BACK, GPT, KVCache, save_atomically
from tasks import TOKEN_ID

COMMA = TOKEN_ID[","]
PADDING = 0  # any id but a comma's: padding is never attended to and never scored
OWN_POSITIONS = "-own"  # suffix of a placement whose latents do not share positions
NOTATION = ("Start_m, End_m, Comma_m, k_m (m latents after every k verbal tokens) "
            "or sums of them such as Start_1+Comma_1, with whole numbers m, k >= 1, "
            "and -own at its end for latents with positions of their own")


# ------------------------------------------------------------------------------------- placement

@dataclass(frozen=True)
class Group:
    """m latents that always stand together, with vectors of their own (function specialization)."""

    where: str  # "Start", "End", "Comma", or the period k as digits
    m: int

    def due(self, token_ids: Tensor, index: Tensor, query_lengths: Tensor) -> Tensor:
        """Does this group stand before the verbal token ``token_ids`` at ``index``? (B, N), bool.

        token_ids, index: (B, N), index counting verbal tokens from 0. query_lengths: (B,).
        """
        if self.where == "Start":
            return index == 0
        if self.where == "End":
            return index == query_lengths[:, None]
        if self.where == "Comma":
            return token_ids == COMMA
        return (index > 0) & (index % int(self.where) == 0)

    @property
    def needs_next_token(self) -> bool:
        """Is the group's place known only once the token after it is? (Then it is fed with it.)"""
        return self.where == "Comma"

    def __str__(self) -> str:
        return f"{self.where}_{self.m}"


@dataclass(frozen=True)
class Placement:
    """Where latents go, in the paper's notation. ``Placement(())`` inserts none.

    k_m counts verbal tokens from the start of the query on, through the response. End_m takes the
    position id of the first response token. Groups due before the same token stand in the order
    Start, End, k_m, Comma: what is known without that token comes first, so that decoding can feed
    it first. Sums commute.
    """

    groups: tuple[Group, ...]
    share_positions: bool = True  # False: every slot, latent or verbal, has a position of its own

    @classmethod
    def parse(cls, notation: str) -> "Placement":
        """``Placement.parse("Start_1+Comma_1")``. Raises ValueError for anything but NOTATION."""
        groups = []
        terms = notation.removesuffix(OWN_POSITIONS)
        for term in terms.split("+"):
            match = re.fullmatch(r"(Start|End|Comma|[1-9]\d*)_([1-9]\d*)", term)
            if not match:
                raise ValueError(f"unknown placement {notation!r}: expected {NOTATION}")
            groups.append(Group(match[1], int(match[2])))
        places = [group.where for group in groups]
        if len(set(places)) < len(places):
            raise ValueError(f"placement {notation!r} names a place twice: add up its m instead")
        rank = {"Start": 0, "End": 1, "Comma": 3}
        groups.sort(key=lambda group: (rank.get(group.where, 2), group.where))
        return cls(tuple(groups), share_positions=terms == notation)

    @property
    def total(self) -> int:
        """M, the number of vectors."""
        return sum(group.m for group in self.groups)

    def due(self, token_ids: Tensor, index: Tensor, query_lengths: Tensor) -> Tensor:
        """Which latents stand before each verbal token: (B, N, M), bool, in slot order."""
        columns = [index.new_empty(*index.shape, 0, dtype=torch.bool)]  # for no groups at all
        for group in self.groups:
            due = group.due(token_ids, index, query_lengths)  # (B, N)
            columns.append(due[..., None].expand(-1, -1, group.m))  # (B, N, m)
        return torch.cat(columns, dim=2)

    def waiting(self, device: torch.device) -> Tensor:
        """Which latents can be fed only once the token after them is known: (M,), bool."""
        return torch.tensor([group.needs_next_token for group in self.groups
                             for _ in range(group.m)], dtype=torch.bool, device=device)

    def __str__(self) -> str:
        own = "" if self.share_positions else OWN_POSITIONS
        return "+".join(map(str, self.groups)) + own


# ------------------------------------------------------------------------------------- insertion

@dataclass(frozen=True)
class VerbalBatch:
    """Queries and responses side by side, padded on the right."""

    token_ids: Tensor  # (B, N)
    query_lengths: Tensor  # (B,)
    lengths: Tensor  # (B,), query and response

    @classmethod
    def collate(cls, queries: list[list[int]], responses: list[list[int]], device=None):
        """From lists of token ids."""
        rows = [query + response for query, response in zip(queries, responses)]
        width = max(map(len, rows))
        padded = [row + [PADDING] * (width - len(row)) for row in rows]
        return cls(torch.tensor(padded, device=device),
                   torch.tensor([len(query) for query in queries], device=device),
                   torch.tensor([len(row) for row in rows], device=device))

    @property
    def index(self) -> Tensor:
        """Each verbal token's place in its row, (B, N); its position id without latents."""
        B, N = self.token_ids.shape
        return torch.arange(N, device=self.token_ids.device).expand(B, N)

    @property
    def in_query(self) -> Tensor:
        """(B, N), bool."""
        return self.index < self.query_lengths[:, None]

    @property
    def in_row(self) -> Tensor:
        """(B, N), bool: query or response, not padding."""
        return self.index < self.lengths[:, None]

    @property
    def in_response(self) -> Tensor:
        """(B, N), bool: the tokens that are scored."""
        return self.in_row & ~self.in_query

    def due(self, placement: Placement) -> Tensor:
        """Which latents stand before each verbal token: (B, N, M), bool; none before padding."""
        due = placement.due(self.token_ids, self.index, self.query_lengths)
        return due & self.in_row[..., None]


@dataclass(frozen=True)
class AugmentedBatch:
    """Verbal tokens with latents inserted: what the Transformer sees.

    A source n < N is the row's verbal token n; N + j is latent j.
    """

    sources: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    valid: Tensor  # (B, T), False for padding, always on the right
    read_slots: Tensor  # (B, N): the slot whose output predicts verbal token n; 0 outside responses


def lay_out(present: Tensor, first_index: Tensor, first_slot: Tensor,
            share_positions: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The slots of N verbal tokens with their latents: sources, position_ids, valid, each (B, T).

    present: (B, N, M + 1), bool: which of the M latents stand before a verbal token, and in the
    last column whether the verbal token itself is there (False for padding).
    first_index, first_slot: (B,), how many verbal tokens and slots the rows hold already.

    Every verbal token gets M + 1 cells, [u_1 ... u_M s]. Squeezing out the empty ones, in order, is
    the whole of insertion. All cells of a verbal token carry its position: position sharing.
    """
    B, N, cells = present.shape
    index = torch.arange(N, device=present.device)
    latents = torch.arange(N, N + cells - 1, device=present.device).expand(N, -1)  # (N, M)
    sources = torch.cat([latents, index[:, None]], dim=1).flatten()  # (N * (M + 1),)
    positions = first_index[:, None] + index.repeat_interleave(cells)  # (B, N * (M + 1))

    present = present.flatten(1)  # (B, N * (M + 1))
    T = int(present.sum(dim=1).max())
    order = torch.argsort(~present, dim=1, stable=True)[:, :T]  # (B, T), present cells, in order
    valid = present.gather(1, order)
    position_ids = positions.gather(1, order)
    if not share_positions:
        position_ids = first_slot[:, None] + torch.arange(T, device=present.device)
    return sources[order], position_ids.masked_fill(~valid, 0), valid


def augment(batch: VerbalBatch, placement: Placement) -> AugmentedBatch:
    """Insert the latents of ``placement`` into whole rows, query and response, for training."""
    due = batch.due(placement)  # (B, N, M)
    present = torch.cat([due, batch.in_row[..., None]], dim=2)  # (B, N, M + 1)
    nothing_before = torch.zeros_like(batch.lengths)
    sources, position_ids, valid = lay_out(present, nothing_before, nothing_before,
                                           placement.share_positions)

    verbal_slots = present.sum(dim=2).cumsum(dim=1) - 1  # (B, N), where each verbal token went
    waiting = (due & placement.waiting(due.device)).sum(dim=2)  # (B, N)
    end_of_query = verbal_slots - waiting - 1  # last slot fed before a first response token
    after_verbal = F.pad(verbal_slots[:, :-1], (1, 0))  # slot of the verbal token before
    first = batch.index == batch.query_lengths[:, None]
    read_slots = torch.where(first, end_of_query, after_verbal)
    return AugmentedBatch(sources, position_ids, valid,
                          read_slots.masked_fill(~batch.in_response, 0))


def count_latents(placement: Placement, query: list[int], response: list[int]) -> int:
    """How many latents ``placement`` inserts into one row, query and response."""
    batch = VerbalBatch.collate([query], [response])
    return int(augment(batch, placement).valid.sum() - batch.lengths.sum())


# ------------------------------------------------------------------------------------ the vectors

class LatentTokens(nn.Module):
    """The M learnable vectors of a placement, and nothing else. A file of them takes a few KB."""

    def __init__(self, placement: Placement, width: int):
        super().__init__()
        self.placement = placement
        self.vectors = nn.Parameter(torch.zeros(placement.total, width))  # (M, D)

    @torch.no_grad()
    def initialise(self, token_embedding: Tensor, generator: torch.Generator) -> None:
        """Start near the mean of the vocabulary's embeddings (V, D); unknown in the paper."""
        noise = torch.randn(self.vectors.shape, generator=generator).to(self.vectors.device)
        self.vectors.copy_(token_embedding.mean(dim=0) + 0.1 * token_embedding.std(dim=0) * noise)

    def fill(self, sources: Tensor, verbal: Tensor) -> Tensor:
        """Embeddings (B, T, D) of slots with these sources, from those of verbal tokens (B, N, D).

        A latent is its vector wherever it stands, and a verbal token's embedding sees no latent.
        """
        table = torch.cat([verbal, self.vectors.expand(len(verbal), -1, -1)], dim=1)  # (B, N+M, D)
        return table.gather(1, sources[..., None].expand(-1, -1, verbal.shape[2]))

    def save(self, path) -> None:
        """Write placement and vectors to ``path``, atomically."""
        save_atomically({"placement": str(self.placement),
                         "vectors": self.vectors.detach().cpu()}, path)

    @classmethod
    def load(cls, path, width: int) -> "LatentTokens":
        """Read what ``save`` wrote. Raises ValueError if it is no such file or does not fit."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            latents = cls(Placement.parse(saved["placement"]), width)
            vectors = saved["vectors"]
        except Exception as error:  # torch.load raises half a dozen types on a damaged file
            raise ValueError(f"{path} is not a readable file of latent tokens") from error
        if vectors.shape != latents.vectors.shape:
            raise ValueError(f"{path} holds vectors of shape {tuple(vectors.shape)}; "
                             f"{latents.placement} at width {width} needs "
                             f"{tuple(latents.vectors.shape)}")
        latents.vectors.data.copy_(vectors)
        return latents


# ------------------------------------------------------------------------- training and decoding

def response_loss(model: GPT, latents: LatentTokens, batch: VerbalBatch) -> Tensor:
    """Mean next-token cross-entropy, in nats, over the verbal tokens of the responses."""
    logits = response_logits(model, latents, batch)
    targets = batch.token_ids.masked_fill(~batch.in_response, -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def response_logits(model: GPT, latents: LatentTokens, batch: VerbalBatch) -> Tensor:
    """Logits (B, N, V) for every verbal token, each from the slot that decoding reads it off.

    Outside the responses they mean nothing.
    """
    rows = augment(batch, latents.placement)
    slots = latents.fill(rows.sources, model.embed(batch.token_ids))  # (B, T, D)
    # Padding is on the right, where causal order already hides it from every real slot.
    hidden = model.hidden_states(slots, rows.position_ids)  # (B, T, D)
    read = rows.read_slots[..., None].expand(-1, -1, hidden.shape[-1])  # (B, N, D)
    return model.head(hidden.gather(1, read))


@torch.no_grad()
def generate(model: GPT, latents: LatentTokens, queries: list[list[int]], max_new_tokens: int,
             stop_id: int | None = None, reminder: Sequence[int] = ()) -> list[list[int]]:
    """Greedy decoding with a KV cache; returns one list of verbal token ids per query.

    Rows may differ in length and may need their latents at different moments. A row ends with
    ``stop_id`` (included) or after ``max_new_tokens``. ``reminder``: verbal tokens to put after
    every comma that the model writes, and to return with the rest. Positions are not checked
    against model.config.context: rotary embeddings run past it, badly. Raises ValueError on an
    empty query.
    """
    if not all(queries):
        raise ValueError("a query needs at least one token to read the first response token off")
    device, placement, cache = model.head.weight.device, latents.placement, KVCache()
    # The query, and a stand-in for the first response token. No comma, it lets just those groups
    # stand before it that belong to the query (End, k_m); the stand-in itself is not fed.
    batch = VerbalBatch.collate(queries, [[PADDING]] * len(queries), device)
    present = torch.cat([batch.due(placement), batch.in_query[..., None]], dim=2)  # (B, N, M + 1)
    verbal = model.embed(batch.token_ids)  # (B, N, D)

    nothing = [model.config.vocab_size] * LOOK_BACK
    recent = torch.tensor([(nothing + query)[-LOOK_BACK:] for query in queries], device=device)
    index = fed = torch.zeros_like(batch.lengths)  # verbal tokens and slots so far, (B,)
    written, finished = [], torch.zeros_like(index, dtype=torch.bool)
    reminded = torch.full_like(index, len(reminder))  # tokens of the reminder said, (B,)
    for step in range(max_new_tokens):
        sources, position_ids, valid = lay_out(present, index, fed, placement.share_positions)
        hidden = model.hidden_states(latents.fill(sources, verbal), position_ids, valid, cache)
        fed, newest = fed + valid.sum(dim=1), (valid.sum(dim=1) - 1)[:, None, None]
        next_ids = model.head(hidden.take_along_dim(newest, dim=1)).argmax(dim=-1)  # (B, 1)
        next_ids, reminded = remind(next_ids, reminded, reminder)
        written.append(next_ids)
        finished |= next_ids[:, 0] == (-1 if stop_id is None else stop_id)
        if finished.all():
            break
        index = batch.query_lengths + step
        due = placement.due(next_ids, index[:, None], batch.query_lengths)  # (B, 1, M)
        if step == 0:
            due &= placement.waiting(device)  # the others were fed with the query
        present = F.pad(due, (0, 1), value=True)  # (B, 1, M + 1)
        recent = torch.cat([recent, next_ids], dim=1)[:, -1 - LOOK_BACK:]
        verbal = model.embed(recent)[:, -1:]  # (B, 1, D)
    rows = torch.cat(written, dim=1).tolist()
    return [row[:row.index(stop_id) + 1] if stop_id in row else row for row in rows]


def remind(next_ids: Tensor, reminded: Tensor, reminder: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Put the next token of the reminder, (B, 1), in the place of what a row in its midst chose.

    reminded: (B,), how many tokens of the reminder a row has said since its last comma; all of them
    where the next token is the model's to choose. A comma that it chooses starts the count anew.
    """
    free = reminded == len(reminder)
    said = next_ids.new_tensor([*reminder, PADDING])[reminded]  # (B,)
    next_ids = torch.where(free, next_ids[:, 0], said)  # (B,)
    comma = free & (next_ids == COMMA)
    reminded = (reminded + 1).clamp(max=len(reminder)).masked_fill(comma, 0)
    return next_ids[:, None], reminded
