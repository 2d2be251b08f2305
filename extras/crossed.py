"""How can one vector say - at the start and + after commas? A look into the crossed code.

    python -m extras.crossed runs/opposite --task opposite-words --base 0

For latents tuned on opposite-words or same-word (testbeds.py), ``Start,Comma_2`` by default:

    cosines    of each vector with the difference of the two words' embeddings, - less +. The table
               0, 1 or 2 is that of a word read at its own slot, one or two later (model.py)
    attention  who reads the latents, by layer and head: those at the start, from the slot that
               chooses the first sign; those at a comma, from the slots that choose to stop or not
"""

import argparse

import torch
from torch import Tensor
import torch.nn.functional as F

from extras.attention import Layout, head_weights
from extras.runs import Run, make_parser
from extras.tables import markdown
from extras.testbeds import VARIANTS
from latent_tokens import LatentTokens, Placement
from model import GPT
from tasks import TASKS, TOKEN_ID, draw_examples
from train import command


def cosines(base: GPT, latents: LatentTokens) -> Tensor:
    """(M, 3): of each vector with the difference of the words, in each table of embeddings."""
    tables = torch.stack([table.weight for table in base.embeddings])  # (3, V + 1, D)
    directions = tables[:, TOKEN_ID["-"]] - tables[:, TOKEN_ID["+"]]
    return F.cosine_similarity(latents.vectors.detach()[:, None], directions, dim=2)


def readers(run: Run, latents: LatentTokens, length: int) -> tuple[Tensor, Tensor]:
    """(L, H) each: what the choice of the first sign gives the latents at the start, and what the
    choice to stop gives those after the comma before it. Means over examples."""
    first, stop = [], []
    for example in draw_examples(run.task, [length], "test", 0, 20):
        layout = Layout.of(latents.placement, example)
        weights = head_weights(run.base, latents, example)  # (L, H, T, T)
        verbal = (~layout.is_latent).nonzero().flatten()
        sign = verbal[len(example.query)]  # the slot of the first operand is before the sign
        first.append(weights[:, :, sign, layout.is_latent & (layout.groups == 1)].sum(dim=-1))
        ends = [verbal[t] for t in range(len(example.query), len(verbal) - 1)
                if (example.query + example.response)[t + 1] in ",;"]
        stop += [weights[:, :, end, layout.is_latent & (layout.groups == layout.groups[end])]
                 .sum(dim=-1) for end in ends[1:]]  # before the first there is no comma
    return torch.stack(first).mean(dim=0), torch.stack(stop).mean(dim=0)


def look(args: argparse.Namespace) -> None:
    run = Run.open(args)
    latents = run.latents(Placement.parse(args.method), args.seed)
    print(markdown(["cosine with - less +", *(f"table {back}" for back in range(3))],
                   [[f"vector {index}", *(f"{each:+.2f}" for each in row)]
                    for index, row in enumerate(cosines(run.base, latents).tolist())]))
    both = readers(run, latents, run.task.id_lengths[-1])
    heads = [f"head {head}" for head in range(run.base.config.n_head)]
    for name, weights in zip(("the first sign reads the start", "the stop reads its comma"), both):
        print(markdown([name, *heads], [[f"layer {layer}", *(f"{each:.2f}" for each in row)]
                                        for layer, row in enumerate(weights.tolist())]))


def main(arguments: list[str] | None = None) -> None:
    TASKS.update({task.name: task for task in VARIANTS})
    parser = make_parser("crossed", __doc__)
    parser.set_defaults(task="opposite-words")
    parser.add_argument("--method", default="Start,Comma_2", metavar="M")
    command(look, parser, arguments)


if __name__ == "__main__":
    main()
