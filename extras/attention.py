"""Who attends to latents: shares of attention by layer, and a map of two items.

    python -m extras.attention runs/default --method Comma_4 --svg docs/attention.svg

The examples are those of the test with seed 0, of one length, that the model answers without a
mistake: it reads its own answer, which is the true one, all at once. Weights are means over heads.
An item ends with its comma, and the last one of the query with the query. Latents that stand side
by side are one group. What a verbal token of the answer attends to is of four kinds:

    nearest group   the latents of the last group before it, whichever that is
    older groups    all other latents before it
    own item        verbal tokens of the item that it is in, itself among them
    older items     all other verbal tokens before it

"uniform" is the null comparison: what each kind would get if all visible slots got the same. The
first table has all four kinds. The others have the nearest group alone, by place in the item: in
all items together, and in each, which shows whether a pattern repeats. With ``Comma_m`` the last
place is a comma, and its nearest group that of its own item.
"""

import argparse
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import Tensor
import torch.nn.functional as F

from extras.controls import load_frozen, open_run
from extras.report import encodes
from extras.show import load_latents
from latent_tokens import LatentTokens, Placement, UserError, make_batch
from model import GPT
from tasks import TASKS, Example, draw_examples, encode
from train import Method, answers

KINDS = ("nearest group", "older groups", "own item", "older items")
SHADES, ASCII_SHADES = " ░▒▓█", " .:*#"
STEPS = (0.02, 0.05, 0.1, 0.2)  # a shade from each step on


@dataclass(frozen=True)
class Layout:
    """What stands in each of the T slots of a query with its response."""

    characters: str  # of verbal tokens; a space for a latent
    latents: str  # the last digit of a latent's number; a space for a verbal token
    groups: Tensor  # (T,): how many groups have begun up to this slot
    items: Tensor  # (T,): the item of a verbal token
    places: Tensor  # (T,): its place there, from 1
    is_latent: Tensor  # (T,), bool
    in_response: Tensor  # (T,), bool: a verbal token of the response

    @classmethod
    def of(cls, placement: Placement, example: Example) -> "Layout":
        text, query_length = example.query + example.response, len(example.query)
        batch = make_batch(placement, [encode(example.query)], [encode(example.response)])
        sources, (items, places) = batch.sources[0], split(text, query_length)
        is_latent, t = sources < placement.total, sources - placement.total  # verbal token t
        begins = is_latent & ~F.pad(is_latent, (1, 0))[:-1]
        return cls("".join(text[i] if i >= 0 else " " for i in t.tolist()),
                   "".join(str(j % 10) if j < placement.total else " " for j in sources.tolist()),
                   begins.cumsum(0), torch.tensor(items)[t.clamp(min=0)],
                   torch.tensor(places)[t.clamp(min=0)], is_latent, t >= query_length)

    def kinds(self) -> Tensor:
        """(T, T): the index in KINDS of each slot, the column, seen from each verbal one."""
        older_group = self.groups < self.groups[:, None]
        older_item = self.items < self.items[:, None]
        return torch.where(self.is_latent, older_group.long(), 2 + older_item.long())

    def window(self) -> tuple[list[int], list[int]]:
        """Slots to draw: the verbal ones of two items in the middle of the response, as rows, and
        all from the group before the item before these on, as columns."""
        first, last = int(self.items[self.in_response][0]), int(self.items[-1])
        item = max(0, min((first + last) // 2, last - 1))
        verbal = ~self.is_latent
        rows = (verbal & (self.items >= item) & (self.items <= item + 1)).nonzero()[:, 0].tolist()
        start = int((verbal & (self.items >= item - 1)).nonzero()[0])
        before = (self.is_latent & (self.groups == self.groups[start])).nonzero()[:, 0].tolist()
        return rows, list(range(min([start, *before]), rows[-1] + 1))


def split(text: str, query_length: int) -> tuple[list[int], list[int]]:
    """The item of each verbal token, from 0, and its place in that item, from 1."""
    items, places = [0], [1]
    for t, character in enumerate(text[:-1]):
        ends = character == "," or t == query_length - 1
        items.append(items[-1] + ends)
        places.append(1 if ends else places[-1] + 1)
    return items, places


# ---------------------------------------------------------------------------------------- measuring

@torch.no_grad()
def attention(model: GPT, latents: LatentTokens, example: Example) -> Tensor:
    """Weights (L + 1, T, T), means over heads: "uniform", then those of the L layers."""
    batch = make_batch(latents.placement, [encode(example.query)], [encode(example.response)])
    for block in model.blocks:
        block.keep_weights = True
    model(latents.embed(batch.sources, model.embed(batch.token_ids)), batch.position_ids)
    for block in model.blocks:
        block.keep_weights = False
    visible = torch.ones(2 * batch.sources.shape[1:]).tril()  # (T, T)
    uniform = visible / visible.sum(dim=1, keepdim=True)
    return torch.stack([uniform, *(each.attention_weights[0].mean(dim=0) for each in model.blocks)])


def shares(layout: Layout, weights: Tensor) -> Tensor:
    """(L + 1, R, 4): the share of each kind in the attention of each response token."""
    kinds = F.one_hot(layout.kinds(), len(KINDS)).float()  # (T, T, 4)
    return torch.einsum("lts,tsk->ltk", weights, kinds)[:, layout.in_response]


@dataclass(frozen=True)
class Measured:
    """The shares of all response tokens, R of them in all examples together."""

    shares: Tensor  # (L + 1, R, 4)
    items: Tensor  # (R,)
    places: Tensor  # (R,)

    @classmethod
    def over(cls, model: GPT, latents: LatentTokens, examples: list[Example]) -> "Measured":
        layouts = [Layout.of(latents.placement, example) for example in examples]
        parts = [shares(layout, attention(model, latents, example))
                 for layout, example in zip(layouts, examples)]
        return cls(torch.cat(parts, dim=1),
                   torch.cat([layout.items[layout.in_response] for layout in layouts]),
                   torch.cat([layout.places[layout.in_response] for layout in layouts]))

    def favourite_layer(self) -> int:
        """The layer where the nearest group gets most, counted from 0."""
        return int(self.shares[1:, :, 0].mean(dim=1).argmax())

    def by_place(self, row: int, where: Tensor) -> str:
        """The nearest group's share at each place, over the tokens ``where`` (R,) selects."""
        means = [self.shares[row, where & (self.places == place), 0].mean().item()
                 for place in range(1, int(self.places.max()) + 1)]
        return "".join(f"{mean:6.2f}" if mean == mean else " " * 6 for mean in means)  # NaN: none

    def tables(self, layer: int) -> str:
        """The three tables: by layer, by layer and place, by item and place in one layer."""
        names = ["uniform", *(f"layer {layer}" for layer in range(len(self.shares) - 1))]
        everywhere = torch.ones_like(self.items, dtype=torch.bool)
        places = "".join(f"{place:6}" for place in range(1, int(self.places.max()) + 1))
        lines = [f"{'to':10}" + "".join(f"{kind:>15}" for kind in KINDS)]
        for name, means in zip(names, self.shares.mean(dim=1).tolist()):
            lines.append(f"{name:10}" + "".join(f"{mean:15.2f}" for mean in means))
        lines += ["", "to the nearest group, by place in the item", f"{'':10}{places}"]
        lines += [f"{name:10}{self.by_place(row, everywhere)}" for row, name in enumerate(names)]
        lines += ["", f"the same in layer {layer}, by item"]
        lines += [f"item {item:<5}{self.by_place(layer + 1, self.items == item)}"
                  for item in self.items.unique().tolist()]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------ drawing

def text_map(layout: Layout, weights: Tensor, shades: str) -> str:
    """A line for each row of the window, of weights (T, T); latents' numbers over their columns."""
    rows, columns = layout.window()
    levels = torch.bucketize(weights, torch.tensor(STEPS), right=True).tolist()
    lines = [f"{name:9}" + "".join(marks[column] for column in columns).rstrip()
             for name, marks in (("latents", layout.latents), ("verbal", layout.characters))]
    for row in rows:
        cells = "".join(shades[levels[row][column]] for column in columns)
        lines.append(f"{layout.characters[row]:>7}  {cells}".rstrip())
    legend = ", ".join(f"{shade} from {step}" for shade, step in zip(shades[1:], STEPS))
    return "\n".join([*lines, f"weights: {legend}"])


def svg_map(layout: Layout, weights: Tensor, title: str) -> str:
    """The same as a picture: latents' columns in orange; opacity is the root of the weight."""
    (rows, columns), size, left, top = layout.window(), 14, 30, 62
    width, height = left + size * len(columns) + 16, top + size * len(rows) + 16
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             'font-family="monospace" font-size="12" text-anchor="middle" fill="#222">',
             f"<title>{escape(title)}</title>", '<rect width="100%" height="100%" fill="#fff"/>',
             f'<text x="{left}" y="20" text-anchor="start">{escape(title)}</text>']
    colors = ["#c2410c" if latent else "#1d4ed8" for latent in layout.is_latent.tolist()]
    for x, column in enumerate(columns):
        heading = (layout.latents[column] + layout.characters[column]).strip()
        parts.append(f'<text x="{left + size * x + 6}" y="{top - 6}" fill="{colors[column]}">'
                     f'{escape(heading)}</text>')
    for y, row in enumerate(rows):
        parts.append(f'<text x="{left - 12}" y="{top + size * y + 11}">'
                     f'{escape(layout.characters[row])}</text>')
        parts += [f'<rect x="{left + size * x}" y="{top + size * y}" width="13" height="13" '
                  f'fill="{colors[column]}" fill-opacity="{weights[row, column] ** 0.5:.2f}"/>'
                  for x, column in enumerate(columns) if column <= row]
    return "\n".join([*parts, "</svg>\n"])


# --------------------------------------------------------------------------------------------- main

def answered(model: GPT, latents: LatentTokens, method: Method,
             args: argparse.Namespace) -> list[Example]:
    """The examples that the model answers without a mistake. Raises UserError if there are none."""
    task = TASKS[args.task]
    if args.length not in (*task.id_lengths, *task.ood_lengths):
        raise UserError(f"--length {args.length} is none of {task.name}'s: choose from "
                        f"{task.id_lengths[0]} to {task.ood_lengths[-1]}")
    examples = draw_examples(task, [args.length], "test", 0, args.examples)
    texts = answers(model, latents, task, method, examples)
    correct = [each for each, text in zip(examples, texts) if text == each.response]
    print(f"{len(correct)} of {len(examples)} answers of length {args.length} are without a "
          "mistake; these are read\n")
    if not correct:
        raise UserError("no answer is without a mistake: choose a smaller --length")
    return correct


def show(args: argparse.Namespace) -> None:
    """Read, measure, print, draw."""
    run, task, method = open_run(args.folder), TASKS[args.task], Method.parse(args.method)
    model = load_frozen(args.folder / f"{task.name}-base{args.base}.pt")
    if args.layer not in (None, *range(model.config.n_layer)):
        raise UserError(f"--layer {args.layer}: choose from 0 to {model.config.n_layer - 1}")
    latents = load_latents(run, task, method, args.base, args.seed, model.config.n_embd)
    examples = answered(model, latents, method, args)
    measured = Measured.over(model, latents, examples)
    layer = measured.favourite_layer() if args.layer is None else args.layer
    layout = Layout.of(latents.placement, examples[0])
    weights = attention(model, latents, examples[0])[layer + 1]  # (T, T)
    title = f"{method}, layer {layer}: each row attends to the columns"
    print(f"{measured.tables(layer)}\n\n{title}\n")
    shades = SHADES if encodes(SHADES) else ASCII_SHADES
    print(text_map(layout, weights, shades))
    if args.svg:
        args.svg.write_text(svg_map(layout, weights, title))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="extras.attention", description=__doc__,
                                     usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/default"))
    parser.add_argument("--task", default="generation", choices=TASKS)
    parser.add_argument("--method", default="Comma_4", metavar="M")
    parser.add_argument("--base", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the tuning")
    parser.add_argument("--length", type=int, default=10, metavar="N")
    parser.add_argument("--examples", type=int, default=100, metavar="N")
    parser.add_argument("--layer", type=int, metavar="N",
                        help="of the last table and the map; default: where the nearest group "
                        "gets most")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the map there")
    args = parser.parse_args(arguments)
    try:
        show(args)
    except (UserError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
