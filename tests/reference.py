"""A slow, plain reference for latent tokens, written from the paper and not from the code.

One row at a time. A row is a list of slots, ("verbal", t) for verbal token t, counted from the
query's first through the response, and ("latent", where, j) for latent j of a group. The model's
weights are used in float64; its forward is not. Decoding has no cache: every new token runs the
whole row again. Letters are model.py's.
"""

import math

import torch
from torch import Tensor


def rank(where: str) -> tuple[int, str]:
    """Before one token: Start, End, the periods by the string of k, separators by name."""
    return (0 if where == "Start" else 1 if where == "End" else 2 if where.isdigit() else 3), where


def parse(notation: str) -> dict[str, int]:
    """"Start_1+8_2-own" to {"Start": 1, "8": 2}, in the order of ``rank`` (the vectors', too)."""
    groups = dict(part.split("_") for part in notation.split("-")[0].split("+"))
    return {where: int(groups[where]) for where in sorted(groups, key=rank)}


def latent_slots(groups: dict[str, int], wheres: list[str]) -> list[tuple]:
    """The slots of the groups named."""
    return [("latent", where, j) for where in wheres for j in range(groups[where])]


def certain_slots(groups: dict[str, int], t: int, n_query: int) -> list[tuple]:
    """Latents before token t, whatever it is: the query's start, its end, after every k tokens."""
    due = {"Start": t == 0, "End": t == n_query}
    return latent_slots(groups, [where for where in groups if due.get(where) or (
        where.isdigit() and t > 0 and t % int(where) == 0)])


def separator_slots(groups: dict[str, int], token: int, separators) -> list[tuple]:
    """Latents that stand before a token because it is a comma (or another separator)."""
    return latent_slots(groups, [where for where in groups if token in separators.get(where, ())])


def row_slots(notation: str, query: list[int], response: list[int], separators):
    """All slots of a row. Without a response this is the *augmented query*, which ends with the
    latents that are certain to stand before the first response token. That token is read off its
    end, so a group before a comma cannot belong to it: nobody knows yet whether a comma follows."""
    groups, tokens, slots = parse(notation), query + response, []
    for t in range(max(len(tokens), len(query) + 1)):
        slots += certain_slots(groups, t, len(query))
        if t < len(tokens):
            slots += separator_slots(groups, tokens[t], separators) + [("verbal", t)]
    return slots


def position_ids(notation: str, slots: list[tuple]) -> list[int]:
    """A latent takes the position id of the verbal token that follows it, and verbal token t has
    id t: both have as many verbal tokens before them. With "-own" every slot has its own id."""
    if "-own" in notation:
        return list(range(len(slots)))
    return [sum(before[0] == "verbal" for before in slots[:i]) for i in range(len(slots))]


def seen_slots(notation: str, query, response, separators) -> list[list[int]]:
    """For each slot those that it sees: all up to itself. With "-latest" an older copy of a latent
    is hidden as soon as one slot is fed together with a newer copy: those before one token are fed
    together, but for what is certain at the end of a query, which is fed with the query."""
    slots, together = row_slots(notation, query, response, separators), []
    for i, slot in enumerate(slots):
        t = sum(before[0] == "verbal" for before in slots[:i])
        with_query = i < len(row_slots(notation, query, [], separators))
        together.append((t, with_query))
    hidden_from = [min((together.index(together[later]) for later in range(i + 1, len(slots))
                        if slots[later] == slot and "-latest" in notation), default=len(slots))
                   for i, slot in enumerate(slots)]
    return [[k for k in range(i + 1) if i < hidden_from[k]] for i in range(len(slots))]


def read_slots(notation: str, query, response, separators) -> list[int]:
    """Where each response token is predicted: the first one at the end of the augmented query,
    every later one at the verbal token before it, whatever latents stand between."""
    slots = row_slots(notation, query, response, separators)
    first = [len(row_slots(notation, query, [], separators)) - 1]
    later = [slots.index(("verbal", len(query) + n - 1)) for n in range(1, len(response))]
    return (first + later)[:len(response)]


def sources(notation: str, slots: list[tuple]) -> list[int]:
    """Latents by their row of the vectors, 0 ... M - 1, and verbal token t as M + t."""
    groups = parse(notation)
    rows = latent_slots(groups, list(groups))
    return [len(rows) + slot[1] if slot[0] == "verbal" else rows.index(slot) for slot in slots]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """LayerNorm without bias over the last dimension."""
    x = x - x.mean(-1, keepdim=True)
    return x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def rotated(x: Tensor, positions: list[int]) -> Tensor:
    """RoPE of x (T, H, K): channels i and i + K/2 turn by position * 10000^(-i / (K/2))."""
    half = x.shape[2] // 2
    rates = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None, None] * rates  # (T, 1, K/2)
    a, b, cos, sin = x[..., :half], x[..., half:], angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2)


def attention(block, x: Tensor, positions: list[int], seen: list[list[int]],
              n_head: int) -> Tensor:
    """Slot by slot, of each head: a softmax over the slots that it sees."""
    T, D = x.shape
    qkv = x @ block.qkv.weight.double().T
    q, k, v = (part.reshape(T, n_head, D // n_head) for part in qkv.split(D, dim=1))
    q, k = rotated(q, positions), rotated(k, positions)
    mixed = []
    for i in range(T):
        scores = (k[seen[i]] * q[i]).sum(-1, keepdim=True) / math.sqrt(D // n_head)  # (., H, 1)
        mixed.append((scores.softmax(dim=0) * v[seen[i]]).sum(0).reshape(D))
    return torch.stack(mixed) @ block.attention_out.weight.double().T


def embedding(model, vectors: Tensor, tokens: list[int], source: int) -> Tensor:
    """One slot's input: a latent's vector, or a verbal token with the two *verbal* ones before."""
    if source < len(vectors):
        return vectors[source].double()
    t = source - len(vectors)
    return sum(table.weight[tokens[t - back]].double()
               for back, table in enumerate(model.embeddings) if t >= back)


def row_logits(model, vectors, notation: str, query, response, separators) -> Tensor:
    """Logits of every slot of a row, (T, V), in float64."""
    slots = row_slots(notation, query, response, separators)
    x = torch.stack([embedding(model, vectors, query + response, source)
                     for source in sources(notation, slots)])
    positions = position_ids(notation, slots)
    seen = seen_slots(notation, query, response, separators)
    for block in model.blocks:
        x = x + attention(block, norm(x, block.attention_norm.weight), positions, seen,
                          model.config.n_head)
        z = norm(x, block.mlp_norm.weight) @ block.mlp_in.weight.double().T
        x = x + (z * (1 + torch.erf(z / math.sqrt(2))) / 2) @ block.mlp_out.weight.double().T
    return norm(x, model.final_norm.weight) @ model.head.weight.double().T


def response_logits(model, vectors, notation, query, response, separators) -> Tensor:
    """Logits that predict each response token, (len(response), V)."""
    logits = row_logits(model, vectors, notation, query, response, separators)
    return logits[read_slots(notation, query, response, separators)]


def decode(model, vectors, notation, query, n_tokens: int, separators):
    """Greedy decoding without a cache: (response, least margin of the best token at any step)."""
    response, margin = [], math.inf
    for _ in range(n_tokens):
        # The next token's own groups are not there yet: the last slot is the one to read.
        last = row_logits(model, vectors, notation, query, response, separators)[-1]
        best, second = last.topk(2).values
        margin = min(margin, (best - second).item())
        response.append(last.argmax().item())
    return response, margin
