"""What answers score that know nothing of the target rule: the floors under the results.

    python -m extras.floors

No run and no model: 256 queries are drawn as those of the test, and the answers are written here. A
wrong rule is one of the other rules of the task's family, followed without a mistake.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
import re
from statistics import fmean

from extras.runs import other_rules, plain_parser
from extras.tables import markdown, span
from tasks import END, TASKS, Example, Generation, Repetition, Task, combine, draw_examples
from train import command, split_means

THREE = [TASKS[name] for name in ("generation", "repetition", "summation")]
Policy = Callable[[Example], str]  # what it writes to a query


def chain(after: Callable[[str], str], example: Example) -> str:
    items = [example.query]
    for _ in range(example.response.count(",")):
        items.append(after(items[-1]))
    return "".join("," + item for item in items[1:])


def follow(task: Task, example: Example) -> str:
    """The answer to the query by the target rule of this task."""
    rule, query = task.target_rule, example.query
    if isinstance(task, Generation):
        return chain(task.after, example)
    if isinstance(task, Repetition):
        counts = range(int(query[-3:-1]) - 1, int(rule[1]) - 1, -1)
        return ",".join(task.item(rule, query, count) for count in counts) + END
    values = dict(re.findall(r"(\w)=(\d)", query))  # Summation
    first, second = query[-3:-1]
    result = combine(rule, int(values[first]), int(values[second]), modulus=100)
    return f"{first}={values[first]}@{second}={values[second]}>{result:02d}"


def no_arithmetic(item: str) -> str:
    """``83@00=83`` after ``47@83=00``, and ``47@83=00`` after ``44@47=83``"""
    left, right = item[3:5], item[6:8]
    return f"{left}@{right}={'00' if '00' not in (left, right) else max(left, right)}"


def policies(task: Task) -> dict[str, Policy]:
    constant = draw_examples(task, task.test_lengths[-1:], "tune", 0, 1)[0].response
    found = {"a constant: the true answer to another query": lambda example: constant,
             "the query, again and again": lambda example: f",{example.query}" * 40}
    if isinstance(task, Generation):
        found["`00`, then the operand that is not `00`"] = partial(chain, no_arithmetic)
    return found


def measure(task: Task, policies: dict[str, Policy]) -> dict[str, dict]:
    """The mean scores of each policy at each length, as in a row of results."""
    examples, rows = draw_examples(task, task.test_lengths, "test", 0, 256), {}
    for name, policy in policies.items():
        scores = defaultdict(list)
        for example in examples:
            for length, score in task.score(example, policy(example)).items():
                scores[length].append(score)
        rows[name] = {"splits": task.splits, "lengths": list(scores), **{
            metric: [fmean(getattr(each, metric) for each in scores[length]) for length in scores]
            for metric in ("accuracy", "exact")}}
    return rows


def tables(task: Task) -> str:
    """A table for each metric: of the wrong rules the best one OOD and their mean, and the rest."""
    wrong = {f"the rule `{each.target_rule}`": partial(follow, each) for each in other_rules(task)}
    rules, others, text = measure(task, wrong), measure(task, policies(task)), []
    for metric in task.claim.metrics:
        means = {name: split_means(row, metric) for name, row in rules.items()}
        best = max(means, key=lambda name: means[name]["OOD"])
        lines = {best: means[best], f"all {len(means)} wrong rules, mean": {
            split: fmean(each[split] for each in means.values()) for split in task.splits}}
        lines |= {name: split_means(row, metric) for name, row in others.items()}
        heads = [f"{split} {span(lengths)}" for split, lengths in task.splits.items()]
        text.append(markdown([f"{task.name}, {metric}", *heads], (
            [name, *(f"{mean:.2f}" for mean in line.values())] for name, line in lines.items())))
    return "\n".join(text)


if __name__ == "__main__":
    command(lambda _: print("\n".join(map(tables, THREE)), end=""), plain_parser("floors", __doc__),
            None)
