"""train.py on a dial of Generation: how often is a rule restated?

    python -m extras.testbeds --task generation-0.1 --bases 100 101 102 --out runs/dial

In documents that state a rule, generation-P restates one before an equation with probability P
(0.05, 0.1, 0.2 or 0.5); Generation itself never does. All options are those of train.py.
"""

from tasks import TASKS, Claim, Generation
import train


class Dial(Generation):
    claim = Claim(("Comma_4",), ("Start_4",))

    def __init__(self, restated: float):
        self.name, self.restated = f"generation-{restated:g}", restated


def main(arguments: list[str] | None = None) -> None:
    TASKS.update({task.name: task for task in map(Dial, (0.05, 0.1, 0.2, 0.5))})
    train.main(arguments)


if __name__ == "__main__":
    main()
