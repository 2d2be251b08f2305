"""The whole method: four latent tokens before every comma, tuned on a frozen model, docs/ready.

    python -m docs.one_page [runs/default/generation-base60.pt]    or cell by cell, in an editor
"""
import pathlib, random, sys
import torch
from torch import Tensor
sys.path += ["", ".."]  # an editor runs cells in docs/
import model
from tasks import TASKS, Example, decode, draw, draw_examples, encode

TASK, COMMA = TASKS["generation"], encode(",")[0]
READY = pathlib.Path(model.__file__).parent / "docs/ready/generation-base60.pt"

# %% Insertion. To the model a latent is a vector, as a token's embedding is: one list holds both.
def predict(base: model.GPT, latents: Tensor, token_ids: list[int]) -> Tensor:
    """Logits (N, V): what the model expects after each of N tokens."""
    inputs, position_ids, verbal_slots = [], [], []
    for t, embedding in enumerate(base.embed(torch.tensor([token_ids]))[0]):
        if token_ids[t] == COMMA:
            inputs += list(latents)
            position_ids += [t] * len(latents)  # that of the comma, so that no token moves
        verbal_slots.append(len(inputs))  # where tokens stand: these latents predict nothing
        inputs.append(embedding)
        position_ids.append(t)
    return base(torch.stack(inputs)[None], torch.tensor([position_ids]))[0, verbal_slots]

def loss(base: model.GPT, latents: Tensor, example: Example) -> Tensor:
    query, response = encode(example.query), encode(example.response)
    logits = predict(base, latents, query + response)[len(query) - 1:-1]  # from the token before
    return torch.nn.functional.cross_entropy(logits, torch.tensor(response))

def answer(base: model.GPT, latents: Tensor, query: str, length: int) -> str:
    token_ids = encode(query)
    for _ in range(length):  # reads everything again each time: latent_tokens.py has a cache
        token_ids.append(int(predict(base, latents, token_ids)[-1].argmax()))
    return decode(token_ids)[len(query):]

# %% Tuning, on one to five equations. The gradient goes through the base, and moves latents alone.
def tune(base: model.GPT, steps: int) -> Tensor:
    latents = base.token_embedding.mean(dim=0) + 0.1 * torch.randn(4, base.config.n_embd)
    # A usual rate is 0.001, for weights. These vectors begin at no word and have far to go: with
    # 0.3 they were stuck on one base of six, with 1.0 on none (docs/log.md).
    optimizer = torch.optim.AdamW([latents.requires_grad_()], lr=1.0, weight_decay=0.05)
    schedule, rng = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps), random.Random(0)
    for step in range(steps):
        examples = [draw(TASK, rng.randint(1, 5), "tune", rng) for _ in range(8)]
        mean = sum(loss(base, latents, example) for example in examples) / len(examples)
        mean.backward(), optimizer.step(), schedule.step(), optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step:3}: loss {mean.item():.2f}", flush=True)
    return latents.detach()

# %% 24 equations, where five were the most in tuning: one answer without latents, then five with.
def show(base: model.GPT, latents: Tensor, examples: list[Example]) -> None:
    for example in examples:
        text = answer(base, latents, example.query, len(example.response))
        right = [score.accuracy for score in TASK.score(example, text).values()]
        print(f"{example.query}{text[:36]}... {sum(right):.0f} of {len(right)} right", flush=True)

def main(path: str | pathlib.Path = READY, steps: int = 200) -> None:
    if not (path := pathlib.Path(path)).exists():
        sys.exit(f"there is no {path}: make it with python train.py --out {path.parent}")
    base, examples = model.GPT.load(path), draw_examples(TASK, [24], "test", seed=0, count=5)
    show(base, base.token_embedding[:0], examples[:1])
    torch.manual_seed(0)
    show(base, tune(base, steps), examples)

if __name__ == "__main__":
    main(*(sys.argv[1:2] if "one_page" in sys.argv[0] else []))  # a notebook's are not for us
