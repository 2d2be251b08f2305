"""The whole method: four latent tokens before every comma, tuned on a frozen model.

    python -m docs.one_page runs/default/generation-base0.pt
"""

from pathlib import Path
import random, sys
import torch
import torch.nn.functional as F

from model import GPT
from tasks import TASKS, Example, decode, draw, draw_examples, encode

COMMA = encode(",")[0]


def predict(base: GPT, latents: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    """Logits (N, V): what the model expects after each of N tokens."""
    inputs, position_ids, verbal_slots = [], [], []
    for t, embedding in enumerate(base.embed(torch.tensor([token_ids]))[0]):
        if token_ids[t] == COMMA:
            inputs += list(latents)
            position_ids += [t] * len(latents)  # they share the position of the token after them
        verbal_slots.append(len(inputs))
        inputs.append(embedding)
        position_ids.append(t)
    return base(torch.stack(inputs)[None], torch.tensor([position_ids]))[0, verbal_slots]


def loss(base: GPT, latents: torch.Tensor, example: Example) -> torch.Tensor:
    query, response = encode(example.query), encode(example.response)
    logits = predict(base, latents, query + response)[len(query) - 1:-1]
    return F.cross_entropy(logits, torch.tensor(response))


def answer(base: GPT, latents: torch.Tensor, query: str, length: int) -> str:
    token_ids = encode(query)
    for _ in range(length):
        token_ids.append(int(predict(base, latents, token_ids)[-1].argmax()))
    return decode(token_ids)[len(query):]


def main(path: str = "runs/default/generation-base0.pt", steps: int = 200) -> None:
    if not Path(path).exists():
        sys.exit(f"there is no {path}: make it with python train.py")
    torch.manual_seed(0)
    base, task, rng = GPT.load(path), TASKS["generation"], random.Random(0)
    latents = base.token_embedding.mean(dim=0) + 0.1 * torch.randn(4, base.config.n_embd)
    optimizer = torch.optim.AdamW([latents.requires_grad_()], lr=1.0, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        for _ in range(16):
            loss(base, latents, draw(task, rng.randint(1, 5), "tune", rng)).backward()
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    for example in draw_examples(task, task.test_lengths, "test", seed=0, count=10):
        with torch.no_grad():
            text = answer(base, latents, example.query, len(example.response))
        right = [score.accuracy for score in task.score(example, text).values()]
        print(f"{example.query}{text[:36]}... {sum(right):.0f} of {len(right)} right")


if __name__ == "__main__":
    main(*sys.argv[1:2])
