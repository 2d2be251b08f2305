"""Who attends to latents: shares of attention, by layer and by place in an item.

    python -m extras.attention runs/default --method Comma_4

Of test queries of one length that the model answers without a mistake, as means over heads
(docs/explore.html shows each). An item begins with its comma, or with the response. Latents side by
side are one group. A verbal token of the answer attends to four kinds of slots:

    nearest group   the latents of the last group before it, whichever that is
    older groups    all other latents before it
    own item        verbal tokens of the item that it is in, itself among them
    older items     all other verbal tokens before it

"uniform": if all visible slots got the same. Second table: the nearest group, by place in its item.
"""

import argparse
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
import torch.nn.functional as F

from extras.runs import Run, make_parser, positive
from latent_tokens import LatentTokens, Placement, UserError
from model import GPT
from tasks import Example, draw_examples
from train import answers, command, to_batch

KINDS = ("nearest group", "older groups", "own item", "older items")


@dataclass(frozen=True)
class Layout:
    """What stands in each of the T slots of a query with its response."""

    groups: Tensor  # (T,): how many groups have begun up to this slot
    items: Tensor  # (T,): the item of a verbal token
    places: Tensor  # (T,): its place there, from 1
    is_latent: Tensor  # (T,), bool
    in_response: Tensor  # (T,), bool: a verbal token of the response

    @classmethod
    def of(cls, placement: Placement, example: Example) -> "Layout":
        sources, M = to_batch(placement, [example]).sources[0], placement.total
        is_latent, t = sources < M, (sources - M).clamp(min=0)  # verbal token t
        begins = is_latent & ~F.pad(is_latent, (1, 0))[:-1]
        query_length = len(example.query)
        items, places = map(torch.tensor, split(example.query + example.response, query_length))
        return cls(begins.cumsum(0), items[t], places[t], is_latent, t >= query_length)

    def kinds(self) -> Tensor:
        """(T, T): the index in KINDS of each slot, the column, seen from each verbal one."""
        older_group = self.groups < self.groups[:, None]
        older_item = self.items < self.items[:, None]
        return torch.where(self.is_latent, older_group.long(), 2 + older_item.long())


def split(text: str, query_length: int) -> tuple[list[int], list[int]]:
    """The item of each verbal token, from 0, and its place in that item, from 1."""
    items, places = [0], [1]
    for t, character in enumerate(text[1:], 1):
        begins = character == "," or t == query_length
        items.append(items[-1] + begins)
        places.append(1 if begins else places[-1] + 1)
    return items, places


@torch.no_grad()
def head_weights(model: GPT, latents: LatentTokens, example: Example) -> tuple[Tensor, Tensor]:
    """What each head of each layer attends to, (L, H, T, T), and what each slot sees, (T, T)."""
    batch, weights = to_batch(latents.placement, [example]), []
    T, mask, verbal = batch.sources.shape[1], batch.attention_mask, model.embed(batch.token_ids)
    visible = torch.ones(T, T).tril().bool() if mask is None else mask[0]

    def written_out(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, **_) -> Tensor:
        """softmax(q k^T / sqrt(K)) v of one layer; keeps the softmax, (1, H, T, T)."""
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights.append(scores.masked_fill(~attn_mask, -torch.inf).softmax(dim=-1))
        return weights[-1] @ v

    with mock.patch.object(F, "scaled_dot_product_attention", written_out):
        model(latents.embed(batch.sources, verbal), batch.position_ids, visible[None])
    return torch.cat(weights), visible.float()


def attention(model: GPT, latents: LatentTokens, example: Example) -> Tensor:
    """Weights (L + 1, T, T), means over heads: "uniform", then those of the L layers."""
    weights, visible = head_weights(model, latents, example)
    uniform = visible / visible.sum(dim=-1, keepdim=True)
    return torch.cat([uniform[None], weights.mean(dim=1)])


def measure(model: GPT, latents: LatentTokens, examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Of all R tokens of the responses: the shares of the kinds in their attention, (L + 1, R, 4),
    and their places, (R,)."""
    shares, places = [], []
    for example in examples:
        layout = Layout.of(latents.placement, example)
        kinds = F.one_hot(layout.kinds(), len(KINDS)).float()  # (T, T, 4)
        weights = attention(model, latents, example)
        shares.append(torch.einsum("lts,tsk->ltk", weights, kinds)[:, layout.in_response])
        places.append(layout.places[layout.in_response])
    return torch.cat(shares, dim=1), torch.cat(places)


def tables(shares: Tensor, places: Tensor) -> str:
    """All kinds by layer, and the nearest group by layer and place."""
    names = ["uniform", *(f"layer {layer}" for layer in range(len(shares) - 1))]
    by_place = torch.stack([shares[:, places == place, 0].mean(dim=1)
                            for place in places.unique()], dim=1)  # (L + 1, places)
    lines = [f"{'to':10}" + "".join(f"{kind:>15}" for kind in KINDS)]
    lines += [f"{name:10}" + "".join(f"{mean:15.2f}" for mean in means)
              for name, means in zip(names, shares.mean(dim=1).tolist())]
    lines += ["", "to the nearest group, by place in the item",
              " " * 10 + "".join(f"{place:6}" for place in places.unique().tolist())]
    lines += [f"{name:10}" + "".join(f"{mean:6.2f}" for mean in means)
              for name, means in zip(names, by_place.tolist())]
    return "\n".join(lines)


def show(args: argparse.Namespace) -> None:
    run = Run.open(args)
    latents = run.latents(Placement.parse(args.method or run.task.claim.proposed[0]), args.seed)
    nearest = min((*run.task.id_lengths, *run.task.ood_lengths), key=lambda n: abs(n - args.length))
    examples = draw_examples(run.task, [nearest], "test", args.seed, args.examples)
    texts = answers(run.base, latents, run.task, str(latents.placement), examples)
    correct = [each for each, text in zip(examples, texts) if text == each.response]
    print(f"{len(correct)} of {len(examples)} answers of length {nearest} are without a mistake; "
          "these are read\n")
    if not correct:
        raise UserError("no answer is without a mistake: choose a smaller --length")
    print(tables(*measure(run.base, latents, correct)))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("attention", __doc__)
    parser.add_argument("--method", metavar="M", help="default: the first that the claim proposes")
    parser.add_argument("--length", type=positive, default=10, metavar="N", help="or the nearest")
    parser.add_argument("--examples", type=positive, default=100, metavar="N")
    command(show, parser, arguments)


if __name__ == "__main__":
    main()
