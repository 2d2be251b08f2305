"""train.py on variants of its testbed: is the effect built into the text?

    python -m extras.testbeds --task generation-0.1 --bases 100 101 102 --out runs/dial
    python -m extras.testbeds --task retrieval --bases 100 101 --out runs/retrieval

``generation-P`` is Generation with rules restated before an equation with probability P in place of
0.5: the dial. With 0 a document states its rule at the start alone. Where rules are often restated,
an early statement is worth little, so that it fades; where they are not, it must last.

``retrieval`` is Summation with one rule and lists of at most 12 in its text. So there is nothing to
be reminded of, and tests of 13-26 variables ask whether latents help to *find* a variable where the
base itself gets unreliable.

The bases of a variant are pre-trained for equally many steps, and tuned also where they lack a
skill. All options are those of train.py.
"""

import random

from tasks import TASKS, Generation, Summation
import train

DIAL = (0, 0.05, 0.1, 0.2, 0.4)


class Retrieval(Summation):
    """``a=3,k=7,f=1?ak>a=3@k=7>10,k=7,fk>f=1@k=7>08;``"""

    name, plain_rule, rules = "retrieval", "+", ("+",)

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


def register() -> None:
    """Add the variants to the tables of tasks.py and train.py."""
    for probability in DIAL:
        task = Generation()
        task.name, task.restated = f"generation-{probability:g}", probability
        TASKS[task.name] = task
        train.PRETRAINING[task.name] = train.PRETRAINING["generation"] | {"needed_skill": 0.0}
        train.METHODS[task.name] = ["Start_4", "Comma_4"]
    TASKS["retrieval"] = Retrieval()
    train.PRETRAINING["retrieval"] = train.PRETRAINING["summation"] | {"needed_skill": 0.0}
    train.METHODS["retrieval"] = ["Start_2", "End_2", "Comma_2", "8_2"]


def main(arguments: list[str] | None = None) -> None:
    register()
    train.main(arguments)


if __name__ == "__main__":
    main()
