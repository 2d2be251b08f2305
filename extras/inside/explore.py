"""Fill docs/explore.html with what a run's base writes, and with its attention.

    python -m extras.explore runs/default

The page is its own template: the JSON in its element ``data`` is replaced, all else stays. It is of
Generation, with the three placements of its claim.
"""

import argparse
import json
from pathlib import Path

import torch

from extras.attention import Layout, head_weights
from extras.runs import Run, make_parser
from latent_tokens import LatentTokens, Placement, UserError
from model import GPT
from tasks import Example, draw_examples
from train import answers, command

PAGE = Path(__file__).parents[2] / "docs" / "explore.html"
OPEN, CLOSE = '<script type="application/json" id="data">\n', "\n</script>"
ITEM = ",47@83=34"  # nine places


@torch.no_grad()
def attention(base: GPT, latents: LatentTokens, example: Example) -> dict:
    """The percentages of attention to latents, by layer, head, equation and place."""
    layout = Layout.of(latents.placement, example)
    weights, visible = head_weights(base, latents, example)  # (L, H, T, T), (T, T)
    to_latents = weights[..., layout.is_latent].sum(dim=-1)[..., layout.in_response]  # (L, H, R)
    by_chance = (visible[:, layout.is_latent].sum(dim=1) / visible.sum(dim=1))[layout.in_response]
    whole = to_latents.shape[2] // len(ITEM) * len(ITEM)
    percent = (100 * to_latents[..., :whole]).round().int().unflatten(2, (-1, len(ITEM)))
    return {"places": ",ab@cd=ef", "shares": percent.tolist(),
            "uniform": (100 * by_chance).round().int().tolist()[-len(ITEM):]}


def collect(run: Run, seed: int, count: int = 10) -> dict:
    """All that the page shows of a run: answers to one test query of some, if there is such a one,
    that the last placement answers without a mistake and all others with one. Of several it is the
    one of the most different digits, as in 20@70=00 there is little to see."""
    if run.task.name != "generation":
        raise UserError("the page states and checks the rule of Generation: leave out --task")
    examples = draw_examples(run.task, run.task.test_lengths, "test", seed, count)
    written = {}
    for name in run.task.claim.baselines + run.task.claim.proposed:
        latents = run.latents(Placement.parse(name), seed)
        written[name] = latents, answers(run.base, latents, run.task, name, examples)
    right = {name: [text == each.response for text, each in zip(texts, examples)]
             for name, (_, texts) in written.items()}
    *others, last = right.values()
    index = min(range(count), key=lambda i: (not last[i], sum(other[i] for other in others),
                                             -len(set(examples[i].query))))
    example, without = examples[index], [name for name in right if right[name][index]]
    shown = {name: {"text": texts[index], "attention": attention(
        run.base, latents, Example(example.query, texts[index]))}
        for name, (latents, texts) in written.items()}
    return {"about": f"Base {run.number}, tuning seed {seed}, tuned on answers of at most "
                     f"{run.task.id_lengths[-1]} equations. In all three panels the query is "
                     f"{example.query}, chosen from {count}: answered without a mistake by "
                     f"{' and '.join(without) + ' alone' if without else 'none'}, and of many "
                     "different digits.",
            "query": example.query, "response": example.response, "answers": shown}


def fill(page: str, data: dict) -> str:
    before, rest = page.split(OPEN)
    return before + OPEN + json.dumps(data, separators=(",", ":")) + CLOSE + rest.split(CLOSE, 1)[1]


def write(args: argparse.Namespace) -> None:
    data = collect(Run.open(args), args.seed)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), data), encoding="utf-8")
    print(f"wrote {PAGE}")


def main(arguments: list[str] | None = None) -> None:
    command(write, make_parser("explore", __doc__), arguments)


if __name__ == "__main__":
    main()
