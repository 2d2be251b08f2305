"""train.py on variants of its testbed: is the effect built into the text?

    python -m extras.testbeds --task generation-0.1 --bases 100 101 102 --out runs/dial
    python -m extras.testbeds --task retrieval --bases 100 101 --out runs/retrieval

``generation-P``, the dial, is Generation with rules restated before an equation with probability P
(0, 0.05, 0.1, 0.2 or 0.4) in place of 0.5: the rarer that is, the longer an early statement lasts.
``retrieval`` is Summation with one rule and lists of at most 12 in its text: nothing to be reminded
of. Do latents help to *find* one of 13-26 variables, where the base itself gets unreliable?

The bases of a variant are tuned also where they lack a skill. All options are those of train.py.
"""

import random

from tasks import TASKS, Claim, Generation, Summation
import train


class Dial(Generation):
    claim = Claim(("Comma_4",), ("Start_4",))
    pretraining = Generation.pretraining | {"needed_skill": 0.0}

    def __init__(self, restated: float):
        self.name, self.restated = f"generation-{restated:g}", restated


class Retrieval(Summation):
    """``a=3,k=7,f=1?ak>a=3@k=7>10,k=7,fk>f=1@k=7>08;``"""

    name, plain_rule, rules = "retrieval", "+", ("+",)
    pretraining = Summation.pretraining | {"needed_skill": 0.0}

    def header(self, rule: str) -> str:
        """Nothing to say: the references are all the base itself."""
        return ""

    def document(self, rng: random.Random, progress: float) -> str:
        """Lists of at most 8 and many look-ups in the first third of pre-training, then of 12."""
        longest, look_ups = (8, 0.5) if progress < 1 / 3 else (12, 0.25)
        values, items = self.variables(rng, rng.randint(2, longest))
        questions = [rng.choice(items) if rng.random() < look_ups
                     else "".join(self.question(rng, "+", values)) for _ in range(len(items) + 6)]
        return f"{','.join(items)}?{','.join(questions)};"


VARIANTS = (*map(Dial, (0, 0.05, 0.1, 0.2, 0.4)), Retrieval())


def main(arguments: list[str] | None = None) -> None:
    TASKS.update({task.name: task for task in VARIANTS})
    train.main(arguments)


if __name__ == "__main__":
    main()
