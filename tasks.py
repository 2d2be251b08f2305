"""The three synthetic tasks, their scoring, and the text that the base model is pre-trained on.

Everything is text over one small alphabet, a character a token. A task is a *family of rules*
that documents of the pre-training stream follow, and one *target rule* that latents are tuned to
elicit. A document may say a rule in words (a header such as ``G+-9:``) at its start and between
items; a rule holds until another is said, and the family's plain rule where nothing is said.
Tuning and test queries say nothing: bringing the frozen base to follow the target rule is the
latents' work. "In distribution" means: of a length that latents are tuned on.

    task        hypothesis of the paper              length         in and out of distribution
    Generation  self-prompting over a long answer    equations      1-5, 6-24  (far: 16-24)
    Repetition  adherence to the instruction         repetitions n  1-5, 6-20  (far: 11-20)
    Summation   retrieval from the input             variables      5-12, 13-26  (far: 20-26)

The class of each task shows one whole example and says which characters are scored.
"""

from dataclasses import dataclass
from itertools import zip_longest
import random
import re
from typing import Iterator
import zlib

import torch
from torch import Tensor

ALPHABET = ";,:0123456789+-x@=*>?GRSabcdefghijklmnopqrstuvwyz"  # x: an operation and a letter
END = ";"  # closes a document; also what padding is made of (a mask hides it)
TOKEN_ID = {character: index for index, character in enumerate(ALPHABET)}
VARIABLES = "abcdefghijklmnopqrstuvwxyz"


def encode(text: str) -> list[int]:
    """Text to token ids. Raises KeyError on a character outside the alphabet."""
    return [TOKEN_ID[character] for character in text]


def decode(token_ids) -> str:
    """Token ids (any iterable of integers) to text; the inverse of ``encode``."""
    return "".join(ALPHABET[int(token_id)] for token_id in token_ids)


def random_source(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose ("tune", "validation", "test", ...) and seed.

    The purpose is part of the seed, so draws for different purposes never share a stream.
    """
    return random.Random(f"{purpose}/{seed}")


@dataclass(frozen=True)
class Example:
    """One row: the model reads ``query`` and must write ``response``."""

    query: str
    response: str
    instruction: str  # the target rule in words, to be put before the query; only references see it


@dataclass(frozen=True)
class Score:
    """Of one answer at one length."""

    accuracy: float  # share of correct items
    exact: bool  # everything right up to this length


# Every task below has
#     name; target_rule, plain_rule       rules as headers say them
#     id_lengths, ood_lengths, far_lengths, possible_lengths, test_lengths
#     metrics                             of Score, the columns of its table
#     claim                               metric, name and lengths by which it is judged ...
#     claimed, baselines                  ... and whose difference counts
#     methods, controls                   rows of the table, by default and with --controls
# and example(rng, length), score(example, text), document(rng).


# ------------------------------------------------------------------------------------ Generation

def combine(operation: str, a: int, b: int, modulus: int) -> int:
    """a + b, |a - b| or a * b, modulo ``modulus``."""
    return {"+": a + b, "-": abs(a - b), "x": a * b}[operation] % modulus


def equation_result(rule: str, left: str, right: str) -> str:
    """Result of two two-digit operands under a rule: operation per digit, then the modulus.

    >>> equation_result("+-9", "44", "47")  # (4 + 4) mod 9, |4 - 7| mod 9
    '83'
    """
    modulus = int(rule[2]) or 10  # the alphabet's digit 0 stands for ten
    return "".join(str(combine(operation, int(a), int(b), modulus))
                   for operation, a, b in zip(rule, left, right))


def equation(rule: str, left: str, right: str) -> str:
    """``44@47=83,``"""
    return f"{left}@{right}={equation_result(rule, left, right)},"


def two_digits(rng: random.Random) -> str:
    """00 ... 99"""
    return f"{rng.randrange(100):02d}"


class Generation:
    """Continue a chain of equations; each takes the last operand and the last result.

        query     44@47=83,
        response  47@83=34,83@34=21,34@21=53,      (length 3)

    The target rule is the paper's: first digit |a1 + b1| mod 9, second |a2 - b2| mod 9. Here it
    is one of 54 that pre-training shows: an operation of + - x for each digit, modulo 5 ... 10.
    Told nothing, a document adds digits modulo 10 (++0).
    An equation is correct if its operands are the last operand and result *as written* before it
    and its result obeys the rule, so one early slip does not condemn everything after it.
    ``accuracy`` at length k is that of equation k alone; ``exact`` wants all k right.
    """

    name = "generation"
    target_rule, plain_rule = "+-9", "++0"
    id_lengths, ood_lengths, far_lengths = range(1, 6), range(6, 25), range(16, 25)
    possible_lengths = range(1, 100)
    test_lengths = (24,)  # one long answer yields the scores of all its lengths
    metrics = ("accuracy", "exact")
    claim = ("accuracy", "far OOD accuracy", far_lengths)  # how claimed methods beat baselines
    claimed, baselines = ("Comma_4",), ("Start_4", "End_4")
    methods = (*baselines, *claimed)
    controls = ("Comma_4-own", "Start_24", "End_24", "Start_100", "End_100", "Comma_4:random",
                "full")
    pattern = re.compile(r"(\d\d)@(\d\d)=(\d\d)")

    def example(self, rng: random.Random, length: int) -> Example:
        left, right = two_digits(rng), two_digits(rng)
        equations = []
        for _ in range(length + 1):
            equations.append(equation(self.target_rule, left, right))
            left, right = right, equations[-1][-3:-1]
        return Example(equations[0], "".join(equations[1:]), f"G{self.target_rule}:")

    def score(self, example: Example, text: str) -> dict[int, Score]:
        """Score of the generated ``text`` at every length 1 ... that of the example."""
        items = [example.query.rstrip(","), *text.split(",")]
        scores, exact = {}, True
        for length in range(1, example.response.count(",") + 1):
            correct = length < len(items) and self.follows(items[length - 1], items[length])
            exact = exact and correct
            scores[length] = Score(float(correct), exact)
        return scores

    def follows(self, previous: str, current: str) -> bool:
        """Is ``current`` the equation that the target rule puts after ``previous``?"""
        before, now = self.pattern.fullmatch(previous), self.pattern.fullmatch(current)
        if not before or not now or now.groups()[:2] != before.groups()[1:]:
            return False
        left, right, result = now.groups()
        return result == equation_result(self.target_rule, left, right)

    def document(self, rng: random.Random) -> str:
        """``G+-9:44@47=83,47@83=34,Gxx7:83@34=35,;``: a rule holds until another is said.

        Few equations, mostly: 5 on average, and every further one is as likely as the one before.
        """
        told, rule, text = rng.random() < 0.75, self.plain_rule, ""
        if told and rng.random() < 0.75:
            rule = self.any_rule(rng)
            text = f"G{rule}:"
        left, right = two_digits(rng), two_digits(rng)
        while True:
            text += equation(rule, left, right)
            left, right = right, text[-3:-1]
            if rng.random() < 0.2:
                return text + END
            if told and rng.random() < 0.2:
                rule = self.any_rule(rng)
                text += f"G{rule}:"

    def any_rule(self, rng: random.Random) -> str:
        """One of 54."""
        return rng.choice("+-x") + rng.choice("+-x") + rng.choice("567890")


# ------------------------------------------------------------------------------------ Repetition

class Repetition:
    """Write an equation and repeat it, counting down, then stop.

        query     4@7=2*04>
        response  7@4=2*04,7@4=2*03,7@4=2*02,7@4=2*01,7@4=2*00;      (length n = 3)

    A count of n + 1 asks for an item and its n repetitions. A rule says *what* is repeated (c: the
    equation as it is; s: its operands swapped) and *where to stop* (1: at item 1, as asked; 0: at
    item 0, one more). So the first item needs the instruction, and the stop needs it again, n
    commas later. Told nothing, a document repeats the equation as it is, as often as asked (c1);
    the target rule is s0, above.
    Each item that the rule wants is scored; ``exact`` wants the whole answer, its stop included.
    """

    name = "repetition"
    target_rule, plain_rule = "s0", "c1"
    rules = ("c0", "c1", "s0", "s1")
    id_lengths, ood_lengths, far_lengths = range(1, 6), range(6, 21), range(11, 21)
    possible_lengths = range(1, 22)  # documents count to 22
    test_lengths = (*id_lengths, *ood_lengths)
    metrics = ("accuracy", "exact")
    claim = ("exact", "OOD exact", ood_lengths)
    claimed, baselines = ("Start_1+Comma_1",), ("Start_2", "End_2", "Comma_2")
    methods = (*baselines, *claimed)
    controls = ("Start_1+Comma_1-own", "Start_7", "End_7", "Start_22", "End_22",
                "Start_1+Comma_1:random", "Start_1+Comma_1:shuffled", "Start_1+Comma_1:removed",
                "full")

    def query(self, rng: random.Random, count: int) -> str:
        """``4@7=2*04>``; the operands differ, so that swapping them shows."""
        left, right = rng.sample(range(10), 2)
        return f"{left}@{right}={(left + right) % 9}*{count:02d}>"

    def item(self, rule: str, query: str, number: int) -> str:
        """``7@4=2*04``"""
        left, right = query[0], query[2]
        if rule[0] == "s":
            left, right = right, left
        return f"{left}@{right}={query[4]}*{number:02d}"

    def example(self, rng: random.Random, length: int) -> Example:
        query, last = self.query(rng, length + 1), int(self.target_rule[1])
        items = [self.item(self.target_rule, query, i) for i in range(length + 1, last - 1, -1)]
        return Example(query, ",".join(items) + END, f"R{self.target_rule}:")

    def score(self, example: Example, text: str) -> dict[int, Score]:
        """Score of the generated ``text`` at the example's own length."""
        written, truth = text.rstrip(END).split(","), example.response.rstrip(END).split(",")
        correct = sum(item == true for item, true in zip(written, truth))
        length = int(example.query[-3:-1]) - 1
        return {length: Score(correct / len(truth), text == example.response)}

    def document(self, rng: random.Random) -> str:
        """``Rs0:4@7=2*03>7@4=2*03,Rs1:7@4=2*02,7@4=2*01;``: a rule holds until another is said.

        Counts of 1 ... 22, evenly. A rule said under way changes where to stop (or is said again,
        where it is too late for that) and never what is repeated; so the one said last decides.
        """
        told, rule, number = rng.random() < 0.75, self.plain_rule, rng.randint(1, 22)
        query, text = self.query(rng, number), ""
        if told and rng.random() < 0.75:
            rule = rng.choice(self.rules)
            text = f"R{rule}:"
        text += query + self.item(rule, query, number)
        while number > int(rule[1]):
            text += ","
            if told and rng.random() < 0.4:
                if number > 1:  # else it is too late to stop at 1, and the rule is said again
                    rule = rule[0] + str(1 - int(rule[1]))
                text += f"R{rule}:"
            number -= 1
            text += self.item(rule, query, number)
        return text + END


# ------------------------------------------------------------------------------------- Summation

class Summation:
    """Retrieve two variables from a list and add them.

        query     a=3,k=7,f=1,c=0,z=9?ak=
        response  10                              (length 5)

    A rule says what is asked of the two values: + their sum, - their distance, x their product.
    Told nothing, a document asks for distances.
    The answer is one item of two digits; ``accuracy`` and ``exact`` are the same here.
    """

    name = "summation"
    target_rule, plain_rule = "+", "-"
    rules = ("+", "-", "x")
    id_lengths, ood_lengths, far_lengths = range(5, 13), range(13, 27), range(20, 27)
    possible_lengths = range(2, 27)  # a sum takes two variables; there are 26 letters
    test_lengths = (*id_lengths, *ood_lengths)
    metrics = ("exact",)
    claim = ("exact", "OOD exact", ood_lengths)
    claimed, baselines = ("Comma_2", "4_2", "8_2"), ("Start_2", "End_2")
    methods = (*baselines, *claimed)
    controls = ("Comma_2-own", "4_2-own", "Start_22", "End_22", "Start_50", "End_50",
                "Comma_2:random", "full")

    def variables(self, rng: random.Random, count: int) -> dict[str, int]:
        """Different letters with any values 0 ... 9, in the order of the list."""
        return {name: rng.randrange(10) for name in rng.sample(VARIABLES, count)}

    def items(self, values: dict[str, int]) -> list[str]:
        """``a=3``, ``k=7``, ..."""
        return [f"{name}={value}" for name, value in values.items()]

    def question(self, rng: random.Random, rule: str, values: dict[str, int]) -> tuple[str, str]:
        """``ak=`` and ``10``"""
        first, second = rng.sample(sorted(values), 2)
        a, b = values[first], values[second]
        answer = combine(rule, a, b, modulus=100)
        return f"{first}{second}=", f"{answer:02d}"

    def example(self, rng: random.Random, length: int) -> Example:
        values = self.variables(rng, length)
        asked, answer = self.question(rng, self.target_rule, values)
        return Example(f"{','.join(self.items(values))}?{asked}", answer, f"S{self.target_rule}:")

    def score(self, example: Example, text: str) -> dict[int, Score]:
        """Score of the generated ``text`` at the example's own length."""
        correct = text == example.response
        return {example.query.count(",") + 1: Score(float(correct), correct)}

    def document(self, rng: random.Random) -> str:
        """``Sx:a=3,k=7,S+:f=1?ak=10,k=7,S-:fk=06;``: a rule holds until another is said.

        Lists of 2 ... 26, short ones more often; half of what is asked is plain look-up (``k=7``),
        where retrieval is learned first.
        """
        told, rule = rng.random() < 0.75, self.plain_rule
        values = self.variables(rng, min(rng.randint(2, 26), rng.randint(2, 26)))
        listed, text = self.items(values), ""
        for index in range(2 * len(listed) + 6):
            asking = index - len(listed)  # the how-manieth question this is, from 0 on
            text += "?" if asking == 0 else "," if index else ""
            if told and rng.random() < (0.33 if index else 0.5):
                rule = rng.choice(self.rules)
                text += f"S{rule}:"
            if asking < 0:
                text += listed[index]
            elif rng.random() < 0.5:
                text += rng.choice(listed)
            else:
                text += "".join(self.question(rng, rule, values))
        return text + END


TASKS = {task.name: task for task in (Generation(), Repetition(), Summation())}


# ------------------------------------------------------------------------- the pre-training stream

def documents(shares: dict[str, float], rng: random.Random) -> Iterator[str]:
    """Documents without end; each task gets its share of the *characters*."""
    written = {name: 0 for name in shares if shares[name] > 0}
    while True:
        name = min(written, key=lambda task: written[task] / shares[task])
        text = TASKS[name].document(rng)
        written[name] += len(text)
        yield text


def pretraining_batches(shares: dict[str, float], rng: random.Random, rows: int,
                        context: int) -> Iterator[Tensor]:
    """Token ids (rows, context + 1), without end: the stream cut into blocks, as in nanoGPT.

    The last token of a block is only a target; the next block starts with it.
    """
    source = documents(shares, rng)
    buffer: list[int] = []
    while True:
        while len(buffer) <= rows * context:
            buffer += encode(next(source))
        block = torch.tensor(buffer[:rows * context + 1])  # (rows * context + 1,)
        buffer = buffer[rows * context:]
        yield block.unfold(0, context + 1, context)


def purpose_of(query: str) -> str:
    """Every query serves one purpose: a tenth is for tests, a tenth for validation."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(query.encode()) % 10, "tune")


def draw(task, length: int, purpose: str, rng: random.Random) -> Example:
    """An example of this length with a query that serves the purpose and no other."""
    while True:
        example = task.example(rng, length)
        if purpose_of(example.query) == purpose:
            return example


def examples(task, lengths, purpose: str, seed: int, count: int) -> list[Example]:
    """``count`` examples of each length in ``lengths``, in that order."""
    rng = random_source(f"{task.name}/{purpose}", seed)
    return [draw(task, length, purpose, rng) for length in lengths for _ in range(count)]


def check_length(task, length: int, context: int) -> None:
    """Raises ValueError if an example overflows the context with its rule before every item."""
    def needed(n: int) -> int:
        row = task.example(random_source("layout", 0), n)
        text = "," + row.query + row.response[:-1]  # nothing is said after the last token
        return len(text.replace(",", "," + row.instruction))

    if length not in task.possible_lengths or needed(length) > context:
        longest = max(n for n in task.possible_lengths if needed(n) <= context)
        raise ValueError(f"length {length} of {task.name} does not fit: the model's context of "
                         f"{context} tokens takes {task.possible_lengths[0]} to {longest}")


def show(row: Example, text: str, width: int = 90) -> str:
    """A generated answer in full, in lines, with ``^`` under its first mistake."""
    pairs = enumerate(zip_longest(text, row.response))
    mistake = next((place for place, (wrote, true) in pairs if wrote != true), None)
    lines = ["without a mistake" if mistake is None else f"first mistake: character {mistake + 1}"]
    for start in range(0, max(len(text), (mistake or 0) + 1), width):
        lines.append("    " + text[start:start + width])
        if mistake is not None and start <= mistake < start + width:
            lines.append(" " * (4 + mistake - start) + "^")
    return "\n".join(lines)
