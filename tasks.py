"""The three synthetic tasks, their scoring, and the text that a base model is pre-trained on.

All is text over one small alphabet, a character a token. A task is a *family of rules* that its
pre-training documents follow, and one *target rule* that latents are tuned to elicit. A header such
as ``G+-9:`` states a rule, at the start or between items. It holds until another is stated (in
Repetition, or forgotten). Queries state nothing: to elicit the target rule is the latents' work.
"""

from collections.abc import Iterable, Sequence
from itertools import count, product
import random
import re
from string import ascii_lowercase
from typing import NamedTuple
import zlib

import torch
from torch import Tensor

from latent_tokens import SEPARATORS, Placement
from model import NOT_SCORED, UserError

ALPHABET = ";,:0123456789+-x@=*>?GRSabcdefghijklmnopqrstuvwyz"  # x: an operation and a variable
END = ";"  # closes a document
TOKEN_ID = {character: index for index, character in enumerate(ALPHABET)}
SEPARATORS["Comma"] = (TOKEN_ID[","],)  # Comma_4: latents before this token (latent_tokens.py)


def encode(text: str) -> list[int]:
    """Text to token ids. Raises UserError on a character outside the alphabet."""
    if unknown := set(text) - TOKEN_ID.keys():
        raise UserError(f"{min(unknown)!r} is not in the alphabet {ALPHABET}")
    return [TOKEN_ID[character] for character in text]


def decode(token_ids: Iterable[int]) -> str:
    return "".join(ALPHABET[int(token_id)] for token_id in token_ids)


def random_source(purpose: str, seed: int) -> random.Random:
    return random.Random(f"{purpose}/{seed}")


class Example(NamedTuple):
    query: str  # what the model reads
    response: str  # what it is to write, with END where stopping is part of the task


class Score(NamedTuple):
    accuracy: float  # share of correct items
    exact: bool  # everything right


class Claim(NamedTuple):
    """The proposed placements lose less than the baselines beyond the lengths tuned on."""
    proposed: tuple[str, ...]
    baselines: tuple[str, ...]
    metrics: tuple[str, ...] = ("exact", "accuracy")  # by each of these fields of Score


class Task:
    """A family of rules, and the guide to adding one of your own.

    Subclass it, set the attributes without a default, write the three methods that raise, and add
    an instance to TASKS. Use the characters of ALPHABET, put commas between items, close a document
    with END, and draw all that is random from ``rng``. A length needs about a hundred queries."""

    name: str  # on the command line
    letter: str  # opens a header, "G" in "G+-9:", and stands nowhere else
    colon = ":"  # closes it
    target_rule: str  # what latents are tuned to elicit
    plain_rule: str  # what a document follows before it states a rule
    rules: tuple[str, ...]  # those that text states
    id_lengths: range  # "in distribution": latents are tuned on these lengths
    ood_lengths: range  # and tested on longer ones, too,
    far_lengths: range  # of which these are the longest
    length_name = "length {}"  # what a length counts
    claim = Claim(("Comma_4",), ("Start_4", "End_4"))  # what train.py compares, and by what
    pretraining: dict = {}  # the fields of PretrainConfig (train.py) that are to differ

    @property
    def test_lengths(self) -> Sequence[int]:
        return (*self.id_lengths, *self.ood_lengths)

    @property
    def splits(self) -> dict[str, tuple[int, int]]:  # the first and last length of each
        return {name: (int(lengths[0]), int(lengths[-1])) for name, lengths in (
            ("ID", self.id_lengths), ("OOD", self.ood_lengths), ("far OOD", self.far_lengths))}

    def example(self, rng: random.Random, length: int) -> Example:
        raise NotImplementedError  # a query that states nothing, its response by the target rule

    def score(self, example: Example, text: str) -> dict[int, Score]:
        raise NotImplementedError  # of a generated text, at each length that it can be judged at

    def document(self, rng: random.Random, progress: float) -> str:
        raise NotImplementedError  # for pre-training, when this share (0 ... 1) of it is done

    def header(self, rule: str) -> str:
        return self.letter + rule + self.colon

    @property
    def instruction(self) -> str:  # the target rule's header: before a query,
        return self.header(self.target_rule)

    reminder = instruction  # and after each comma

    def restate(self, rng: random.Random, probability: float, rule: str,
                new: str = "") -> tuple[str, str]:
        """The rule from here on and, where one is stated, its header. It may be the one before."""
        if probability and rng.random() < probability:  # at 0 no random number is used up
            rule = new or rng.choice(self.rules)
            return rule, self.header(rule)
        return rule, ""


def combine(operation: str, a: int, b: int, modulus: int) -> int:
    """a + b, |a - b| or a * b, modulo ``modulus``."""
    return {"+": a + b, "-": abs(a - b), "x": a * b}[operation] % modulus


def equation(rule: str, left: str, right: str) -> str:
    """``44@47=83`` by ``+-9``: (4 + 4) mod 9, |4 - 7| mod 9. A rule writes modulus 10 as 0."""
    digits = [combine(operation, int(a), int(b), int(rule[2]) or 10)
              for operation, a, b in zip(rule, left, right)]
    return f"{left}@{right}={digits[0]}{digits[1]}"


class Generation(Task):
    """Continue a chain of equations; each takes the last operand and the last result.

        query     44@47=83
        response  ,47@83=34,83@34=21,34@21=53      (length 3)

    The target rule is the paper's: first digit (a1 + b1) mod 9, second |a2 - b2| mod 9. *No text
    states or follows it*, only 53 others: + - x for each digit, modulo 5 ... 10; plain is ++0.
    An equation is correct if it follows from the one before *as written*: a slip does not condemn
    what follows. But once an operand is not copied nothing after it counts, nor does an equation
    that is the one before again. ``accuracy`` at k is of equation k alone, ``exact`` of all k."""

    name, letter = "generation", "G"
    target_rule, plain_rule = "+-9", "++0"
    rules = tuple(rule for rule in map("".join, product("+-x", "+-x", "567890")) if rule != "+-9")
    id_lengths, ood_lengths, far_lengths = range(1, 6), range(6, 25), range(16, 25)
    test_lengths = (24,)  # one long answer yields the scores of all its lengths
    length_name = "equations {}"
    pretraining = {"steps": 900, "adam_lr": 0.01}
    restated = 0.0  # how often a document that states a rule states another before an equation

    def example(self, rng: random.Random, length: int) -> Example:
        left = f"{rng.randint(1, 8)}{rng.randint(1, 8)}"  # 0 and 9 hide a rule, or end a chain
        chain = [equation(self.target_rule, left, f"{rng.randrange(100):02d}")]
        for _ in range(length):
            chain.append(self.after(chain[-1]))
        return Example(chain[0], "".join("," + item for item in chain[1:]))

    def after(self, item: str) -> str | None:
        """The equation that follows by the target rule; None where ``item`` is no equation."""
        operands = re.fullmatch(r"\d\d@(\d\d)=(\d\d)", item)
        return equation(self.target_rule, *operands.groups()) if operands else None

    def score(self, example: Example, text: str) -> dict[int, Score]:
        items = iter((example.query + text).split(","))
        before, exact, scores = next(items), True, {}
        linked = before == example.query  # not where the text goes on without a comma
        for length in range(1, example.response.count(",") + 1):
            item, expected = next(items, ""), self.after(before) or ","  # which no item is
            linked = linked and item[:6] == expected[:6]  # 47@83= is copied; once not, never again
            correct = linked and item == expected != before  # 00@00=00 follows from itself
            exact, before = exact and correct, item
            scores[length] = Score(float(correct), exact)
        return scores

    def document(self, rng: random.Random, progress: float) -> str:
        """``44@47=81,Gxx7:47@81=40,;``: at most one rule is stated, once, mostly at the start.
        Two equations on average in the first half of pre-training, five in the second."""
        rule, text, states_rule = self.plain_rule, "", rng.random() < 0.75
        place = 0 if rng.random() < 0.75 else rng.randint(1, 4)  # before which equation
        left, right = (f"{rng.randrange(100):02d}" for _ in range(2))
        for index in count():
            if states_rule and (index == place or rng.random() < self.restated):
                rule = rng.choice(self.rules)
                text += self.header(rule)
            text += equation(rule, left, right) + ","
            if rng.random() < (0.5 if progress < 0.5 else 0.2):
                return text + END
            left, right = right, text[-3:-1]


class Repetition(Task):
    """Write an equation and repeat it, counting down, then stop.

        query     4@7=2*05>
        response  4-7=2*04,4-7=2*03,4-7=2*02,4-7=2*01,4-7=2*00;      (length n = 3)

    A rule says *which sign* stands for @ (+ or -) and *where to stop* (at item 1, or at item 0). So
    the first item needs the instruction, and the stop needs it again, n commas later; n + 2 items
    in all, each scored; ``exact`` asks for all of them and the stop. The plain rule is +1."""

    name, letter = "repetition", "R"
    colon = "::"  # two, as an embedding also sees the two tokens before its own (model.py)
    target_rule, plain_rule, rules = "-0", "+1", ("+0", "+1", "-0", "-1")
    id_lengths, ood_lengths, far_lengths = range(1, 9), range(9, 21), range(15, 21)
    length_name = "n = {}"
    claim = Claim(("Start_2+Comma_2",), ("Start_4", "End_4"))
    pretraining = {"steps": 640, "short": (16, 110), "short_until": 0.45}

    def query(self, rng: random.Random, count: int) -> str:
        left, right = rng.sample(range(10), 2)
        return f"{left}@{right}={(left + right) % 9}*{count:02d}>"

    def item(self, rule: str, query: str, number: int) -> str:  # 4-7=2*04
        return f"{query[:5].replace('@', rule[0])}*{number:02d}"

    def example(self, rng: random.Random, length: int) -> Example:
        query, last = self.query(rng, length + 2), int(self.target_rule[1])
        items = [self.item(self.target_rule, query, i) for i in range(length + 1, last - 1, -1)]
        return Example(query, ",".join(items) + END)

    def score(self, example: Example, text: str) -> dict[int, Score]:
        written, truth = text.rstrip(END).split(","), example.response.rstrip(END).split(",")
        correct = sum(item == true for item, true in zip(written, truth))
        length = int(example.query[-3:-1]) - 2
        return {length: Score(correct / len(truth), text == example.response)}

    def document(self, rng: random.Random, progress: float) -> str:
        """``R-0::4@7=2*04>4-7=2*03,R-1::4-7=2*02,4-7=2*01;``

        Short counts first. Restated mid-document, a rule changes where to stop, so the last
        statement decides. Where nothing is stated, the writer sometimes forgets it and falls back
        to the plain stop, so that it pays to be reminded."""
        longest = round(min(21, 3 + 40 * progress))
        number = min(rng.randint(1, longest), rng.randint(1, longest))
        states_rules = rng.random() < 0.75
        query = self.query(rng, number + 1)
        rule, opening = self.restate(rng, 0.75 * states_rules, self.plain_rule)
        rule, header = self.restate(rng, 0.5 * states_rules, rule)
        text = opening + query + header + self.item(rule, query, number)
        while number > int(rule[1]):
            new = rule[0] + str(1 - int(rule[1])) if number > 1 else rule  # the other stop
            rule, header = self.restate(rng, 0.5 * states_rules, rule, new)
            if not header and number > 1 and rng.random() < 0.15:
                rule = rule[0] + self.plain_rule[1]
            number -= 1
            text += "," + header + self.item(rule, query, number)
        return text + END


class Summation(Task):
    """Retrieve two variables from a list and add them.

        query     a=3,k=7,f=1,c=0,z=9?ak>
        response  a=3@k=7>10                      (length 5)

    The answer shows its work, as two look-ups and the result. A rule says what is asked of the two
    values: + their sum, - their distance (the plain rule), x their product."""

    name, letter = "summation", "S"
    target_rule, plain_rule, rules = "+", "-", ("+", "-", "x")
    id_lengths, ood_lengths, far_lengths = range(5, 13), range(13, 27), range(20, 27)
    length_name = "{} variables"
    claim = Claim(("Comma_2", "8_2"), ("Start_2", "End_2"), ("exact",))
    pretraining = {"steps": 660, "short_until": 1 / 3}

    def variables(self, rng: random.Random, count: int) -> list[str]:
        """``["a=3", "k=7"]``: different letters, any digits."""
        return [f"{name}={rng.randrange(10)}" for name in rng.sample(ascii_lowercase, count)]

    def question(self, rng: random.Random, rule: str, items: list[str]) -> tuple[str, str]:
        """``ak>`` and ``a=3@k=7>10``"""
        first, second = rng.sample(sorted(items), 2)
        answer = combine(rule, int(first[-1]), int(second[-1]), modulus=100)
        return f"{first[0]}{second[0]}>", f"{first}@{second}>{answer:02d}"

    def example(self, rng: random.Random, length: int) -> Example:
        while True:
            items = self.variables(rng, length)
            question, answer = self.question(rng, self.target_rule, items)
            if "=0" not in answer:  # else sum and distance are the same
                return Example(f"{','.join(items)}?{question}", answer)

    def score(self, example: Example, text: str) -> dict[int, Score]:
        correct = text == example.response
        return {example.query.count(",") + 1: Score(float(correct), correct)}

    def document(self, rng: random.Random, progress: float) -> str:
        """``Sx:a=3,k=7,S+:f=1?ak>a=3@k=7>10,k=7,S-:fk>f=1@k=7>06;``

        Lists of at most 8 and many look-ups (``k=7``) in the first third of pre-training, where
        retrieval is learned; then lists of 2 ... 26, short ones more often."""
        longest, look_ups, often = (8, 0.5, 0.33) if progress < 1 / 3 else (26, 0.25, 0.6)
        states_rules = rng.random() < 0.75
        items = self.variables(rng, min(rng.randint(2, longest), rng.randint(2, longest)))
        rule, given, asked = self.plain_rule, [], []
        for item in items:
            rule, header = self.restate(rng, (often if given else 0.5) * states_rules, rule)
            given.append(header + item)
        for _ in range(len(items) + 6):
            rule, header = self.restate(rng, often * states_rules, rule)
            is_look_up = rng.random() < look_ups
            asked.append(header + (rng.choice(items) if is_look_up
                                   else "".join(self.question(rng, rule, items))))
        return f"{','.join(given)}?{','.join(asked)}{END}"


TASKS = {task.name: task for task in (Generation(), Repetition(), Summation())}


def pretraining_batch(task: Task, rng: random.Random, progress: float, batch_size: int,
                      block_size: int) -> tuple[Tensor, Tensor]:
    """Token ids and their targets, each (batch_size, block_size): documents, the last one cut off.
    Headers are no targets: the base learns to follow rules, not to make them up."""
    token_ids, targets, headers = [], [], f"{re.escape(task.letter)}[^:]*:+"  # G+-9: R-0::
    for _ in range(batch_size):
        text = ""
        while len(text) <= block_size:
            text += task.document(rng, progress)
        token_ids.append(encode(text[:block_size]))
        blank = re.sub(headers, lambda header: "\0" * len(header[0]), text)[1:block_size + 1]
        targets.append([TOKEN_ID.get(each, NOT_SCORED) for each in blank])  # \0 has no id
    return torch.tensor(token_ids), torch.tensor(targets)


def purpose_of(query: str) -> str:
    """Tuning sees neither the tenth of all queries kept for tests, nor that for validation."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(query.encode()) % 10, "tune")


def draw(task: Task, length: int, purpose: str, rng: random.Random) -> Example:
    for _ in range(100_000):
        example = task.example(rng, length)
        if purpose_of(example.query) == purpose:
            return example
    raise UserError(f"{task.name} has no {purpose} query of length {length}: allow more queries")


def draw_examples(task: Task, lengths: Sequence[int], purpose: str, seed: int,
                  count: int) -> list[Example]:
    """About ``count`` examples, equally many of each length, in that order."""
    rng, each = random_source(f"{task.name}/{purpose}", seed), max(1, count // len(lengths))
    return [draw(task, length, purpose, rng) for length in lengths for _ in range(each)]


def checksum(task: Task) -> int:
    """Changes with text, rule, lengths, examples or scores: results of two tasks do not mix."""
    examples = [each for purpose in ("tune", "validation", "test") for each in draw_examples(
        task, [*task.id_lengths, *task.test_lengths], purpose, seed=0, count=20)]
    scores = [task.score(each, text) for each in examples for text in (  # 4 kinds of answer
        each.response, each.response[:-1], each.response.replace("3", "4"), "00@00=00," * 24)]
    parts = text_checksum(task), (task.instruction, task.reminder), task.splits, examples, scores
    return zlib.crc32(repr(parts).encode())


def text_checksum(task: Task) -> int:  # of a sample of the pre-training text, and its alphabet
    rng = random_source("checksum", 0)
    documents = (task.document(rng, n / 1000) for n in range(1000))
    return zlib.crc32("".join([ALPHABET, *documents]).encode())


def check(task: Task, show: bool = False) -> None:
    """Raises UserError where a task contradicts itself, before anything is trained on it."""
    documents = [task.document(random_source("check", seed), 0.9) for seed in range(3)]
    examples = draw_examples(task, task.id_lengths, "tune", seed=0, count=100)
    if show:
        print(f"{task.name}: documents, a query, its response", *documents, *examples[-1], sep="\n")
    encode("".join([task.letter, task.instruction, task.reminder, *documents]))
    for example in examples:
        encode(text := "".join([*example, END]))
        if task.letter in text:
            raise UserError(f"{task.name}: its letter, {task.letter}, cannot stand in {text}")
        true, wrong = (task.score(example, wrote).values() for wrote in (example.response, ""))
        if {*true} != {Score(1.0, True)} or any(1.0 in score for score in wrong):
            raise UserError(f"{task.name}: score() must give 1 to the true response, and at no "
                            f"length to an empty one: {example}")
    if "," in task.reminder:  # each comma has one, so there would be no end
        raise UserError(f"{task.name}: its reminder, {task.reminder}, cannot have a comma")
    for name in task.claim.proposed + task.claim.baselines:
        if name != (written := str(Placement.parse(name))):
            raise UserError(f"{task.name}: write {name} in its claim as {written}")
    checksum(task)  # draws all lengths and purposes, and scores odd texts
