"""The text: documents under a hidden rule, and how well it can be predicted.

    44@47=83=34,10@92=12=10,      +-9: first digits added, difference of the second, mod 9

They are Generation's, without a header, and with fresh operands in every equation, which goes on as
a chain: each result comes from the two numbers before it. An operand costs log 10 a digit for any
model, and a result nothing once the rule is known. The rule is one of 54. So knowing it is worth
much to a model that cannot work it out from earlier equations, and at most log 54 = 4.0 nats a
document to one that can.
"""

from itertools import product
from math import log
import random
import re
from statistics import fmean
import zlib

import torch
from torch import Tensor

from tasks import END, encode, equation, random_source

RULES = ["".join(parts) for parts in product("+-x", "+-x", "567890")]


def two_operands(rng: random.Random) -> list[str]:
    return [f"{rng.randrange(100):02d}" for _ in range(2)]


def chain(rule: str, left: str, right: str, results: int = 1) -> str:
    """``44@47=83,``, or with more results ``44@47=83=34,``."""
    text = f"{left}@{right}"
    for _ in range(results):
        left, right = right, equation(rule, left, right)[-2:]
        text += f"={right}"
    return text + ","


def draw_documents(purpose: str, seed: int, count: int, equations: int,
                   results: int = 1) -> tuple[list[str], list[str]]:
    """The hidden rules and the texts, all of one length."""
    rng, rules, texts = random_source(f"thoughts/{purpose}", seed), [], []
    for _ in range(count):
        rules.append(rng.choice(RULES))
        texts.append("".join(chain(rules[-1], *two_operands(rng), results)
                             for _ in range(equations)))
    return rules, texts


def to_ids(texts: list[str]) -> Tensor:
    """(B, 1 + N), opened by END, so that the first character is predicted, too."""
    return torch.tensor([encode(END + text) for text in texts])


def text_checksum(equations: int, results: int) -> int:
    """A number that changes with the text that is drawn: a result says which one it is of."""
    return zlib.crc32("".join(draw_documents("checksum", 0, 200, equations, results)[1]).encode())


# ----------------------------------------------------------------------------------------- judging

def equations_of(text: str) -> list[str]:
    """All that ends in a comma."""
    return re.findall("[^,]*,", text)


def follows(rule: str, item: str) -> bool:
    """Is this an equation, and are its results right?"""
    return (re.match(r"\d\d@\d\d=", item) is not None
            and item == chain(rule, item[:2], item[3:5], item.count("=")))


def share_following(rule: str, text: str) -> float:
    """The share of the equations of a text that follow the rule; 0 if there are none."""
    return fmean([follows(rule, item) for item in equations_of(text)] or [0])


def share_of_best_rule(text: str) -> float:
    """The same for the rule that most of them follow."""
    return max(share_following(rule, text) for rule in RULES)


def consistent_rules(text: str) -> list[str]:
    return [rule for rule in RULES if all(follows(rule, item) for item in equations_of(text))]


# ---------------------------------------------------------------------------------- ideal figures

def ideal_figures(texts: list[str]) -> dict[str, float]:
    """Nats of a document, as means, for three readers who know all 54 rules by heart.

    ``rule known``  is told the rule: operands alone.
    ``ideal``       infers it from the whole text: log(54 / c) more, where c rules are consistent
                    with it. No model has a lower NLL, and none with z a lower bound.
    ``no memory``   reads every equation by itself: log(54 / c) more for each, with the c of that
                    equation. (Where c = 1, that is the whole log 54 each time.)
    """
    def cost(text: str) -> float:
        return log(len(RULES) / len(consistent_rules(text)))

    operands = log(10) * 4 * len(equations_of(texts[0]))
    return {"rule known": operands,
            "ideal": operands + fmean(cost(text) for text in texts),
            "no memory": operands + fmean(sum(map(cost, equations_of(text))) for text in texts)}


def ideal_probe(texts: list[str]) -> float:
    """How often the best guess at the rule is right: several may be consistent with a text."""
    return fmean(1 / len(consistent_rules(text)) for text in texts)


def ideal_share(rules: list[str], prefixes: list[str], rng: random.Random) -> float:
    """The share of right equations of a writer who draws one of the rules that fit the prefix."""
    shares = []
    for rule, prefix in zip(rules, prefixes):
        guesses, results = consistent_rules(prefix), equations_of(prefix)[0].count("=")
        written = "".join(chain(rng.choice(guesses), *two_operands(rng), results)
                          for _ in range(20))
        shares.append(share_following(rule, written))
    return fmean(shares)
