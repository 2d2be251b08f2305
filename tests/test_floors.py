"""Floors: no cheap answer passes for one that follows the target rule."""

from pathlib import Path

import pytest

from extras import floors
from tasks import Example, draw_examples

PAGE = (Path(__file__).parents[1] / "docs" / "testbed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", floors.THREE)
def test_a_rule_that_is_not_followed(task):
    for example in draw_examples(task, task.test_lengths, "test", 1, 40):
        assert floors.follow(task, example) == example.response


def test_answers_without_arithmetic_by_hand():
    example = Example("44@47=83", ",47@83=34,83@34=21,34@21=53,")
    assert floors.chain(floors.no_arithmetic, example) == ",47@83=00,83@00=83,00@83=83,83@83=00"


@pytest.mark.parametrize("task", floors.THREE)
def test_floors_of_the_page_that_are_others_or_no_floors(task):
    """Of answers that know nothing of the target rule none gets more than 0.05 OOD."""
    tables = floors.tables(task)
    assert PAGE.count(tables) == 1
    _, _, *lines = tables.split("\n\n")[0].splitlines()  # by the first metric of the claim
    assert len(lines) > 3 and all(float(line.split("|")[3]) <= 0.05 for line in lines)
