"""train.py on variants of its testbed.

    python -m extras.testbeds --task generation-0.1 --bases 100 101 102 --out runs/dial

    generation-P         the dial: a rule is restated before an equation with probability P (0.05,
                         0.1, 0.2 or 0.5) in documents that state one; in Generation itself never
    modulus-4            Generation on +-4: no text has this modulus. Do latents teach, or name?
    forty-rules          Generation by forty rules, drawn for each example and stated in its query,
                         tested on 14 others. So latents cannot hold the rule, only help to carry it
    repetition-held-out  Repetition, with its target rule -0 in no text
    opposite-words,      Repetition with a *crossed code*: at the start a header says which sign
    same-word            stands for @, after a comma where to stop. For the target rule it says - at
                         the start, and at commas + (opposite words) or - (the same word)
    retrieval            Summation with one rule, on text with lists of at most 10: nothing to be
                         reminded of. Do latents help to *find* a variable in longer lists?

The bases of a variant are tuned also where they lack a skill. All options are those of train.py.
"""

import random

from tasks import END, TASKS, Claim, Example, Generation, Repetition, Score, Summation, purpose_of
import train

NO_SKILL = {"needed_skill": 0.0}


class Dial(Generation):
    claim = Claim(("Comma_4",), ("Start_4",))
    pretraining = Generation.pretraining | NO_SKILL

    def __init__(self, restated: float):
        self.name, self.restated = f"generation-{restated:g}", restated


class Modulus(Generation):
    name, target_rule = "modulus-4", "+-4"
    pretraining = Generation.pretraining | NO_SKILL

    def example(self, rng: random.Random, length: int) -> Example:
        """Modulo 4 a chain may collapse to 00@00=00: others only."""
        while True:
            example = super().example(rng, length)
            items = [example.query, *example.response.split(",")[1:]]
            if all(one != other for one, other in zip(items, items[1:])):
                return example


class FortyRules(Generation):
    """``G+x7:44@47=83`` and ``,47@83=...``"""

    name, instruction, reminder = "forty-rules", "", ""  # the query has it in words already
    pretraining = Generation.pretraining | NO_SKILL
    held_out = tuple(sorted(random.Random(0).sample(
        [rule for rule in Generation.rules if not rule.startswith("xx")], 13))) + ("+-9",)

    def example(self, rng: random.Random, length: int) -> Example:
        while True:
            rule = rng.choice(("+-9", *self.rules))
            example = following(rule).example(rng, length)
            query = self.header(rule) + example.query
            items = [example.query, *example.response.split(",")[1:]]
            if ((rule in self.held_out) == (purpose_of(query) == "test")
                    and all(one != other for one, other in zip(items, items[1:]))):
                return Example(query, example.response)

    def score(self, example: Example, text: str) -> dict[int, Score]:
        rule, query = example.query[1:4], example.query[5:]
        return following(rule).score(Example(query, example.response), text)


def following(rule: str) -> Generation:
    task = Generation()
    task.target_rule = rule
    return task


class RepetitionHeldOut(Repetition):
    name = "repetition-held-out"
    claim = Claim(("Start_2+Comma_2",), ("Start_4", "End_4"), ("exact",))
    pretraining = Repetition.pretraining | NO_SKILL

    def document(self, rng: random.Random, progress: float) -> str:
        while True:
            text = super().document(rng, progress)
            if "R-0" not in text:
                return text


class CrossedCode(Repetition):
    """``R-::4@7=2*04>4-7=2*03,R+::4-7=2*02,4-7=2*01,4-7=2*00;`` (opposite words)"""

    pretraining = Repetition.pretraining | NO_SKILL
    rules = "+-"
    claim = Claim(("Start_2+Comma_2", "Start,Comma_2", "Start,Comma_4"), ("Start_4",), ("exact",))

    def __init__(self, name: str, stop_words: str):
        self.name, self.stop_words = name, stop_words  # the words for item 0 and for item 1
        self.instruction, self.reminder = self.header("-"), self.header(stop_words[0])

    instruction = reminder = ""

    def document(self, rng: random.Random, progress: float) -> str:
        longest = round(min(21, 3 + 40 * progress))
        number = min(rng.randint(1, longest), rng.randint(1, longest))
        states_rules = rng.random() < 0.75
        query = self.query(rng, number + 1)
        sign, opening = self.restate(rng, 0.75 * states_rules, "+")
        text, stop = opening + query + self.item(sign, query, number), 1
        while number > stop:
            header = ""
            if rng.random() < 0.5 * states_rules:
                stop = 1 - stop if number > 1 else stop
                header = self.header(self.stop_words[stop])
            elif number > 1 and rng.random() < 0.15:
                stop = 1  # forgotten
            number -= 1
            text += "," + header + self.item(sign, query, number)
        return text + END


class Retrieval(Summation):
    """``a=3,k=7,f=1?ak>a=3@k=7>10,k=7,fk>f=1@k=7>08;``"""

    name, plain_rule, rules = "retrieval", "+", ("+",)
    pretraining = Summation.pretraining | NO_SKILL | {"short_until": 1.0}

    def header(self, rule: str) -> str:
        """Nothing to say: the references are all the base itself."""
        return ""

    def document(self, rng: random.Random, progress: float) -> str:
        longest, look_ups = (8, 0.5) if progress < 1 / 3 else (10, 0.25)
        values, items = self.variables(rng, rng.randint(2, longest))
        questions = [rng.choice(items) if rng.random() < look_ups
                     else "".join(self.question(rng, "+", values))
                     for _ in range(rng.randint(1, 3))]
        return f"{','.join(items)}?{','.join(questions)};"


VARIANTS = (*map(Dial, (0.05, 0.1, 0.2, 0.5)), Modulus(), FortyRules(), RepetitionHeldOut(),
            CrossedCode("opposite-words", "+-"), CrossedCode("same-word", "-+"), Retrieval())


def main(arguments: list[str] | None = None) -> None:
    TASKS.update({task.name: task for task in VARIANTS})
    train.main(arguments)


if __name__ == "__main__":
    main()
