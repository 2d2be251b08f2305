"""Floors: no cheap answer passes for one that follows the target rule."""

from pathlib import Path

import pytest

from extras import floors
from tasks import Example, draw_examples
from train import split_means

PAGE = (Path(__file__).parents[1] / "docs" / "testbed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", floors.THREE)
def test_a_rule_that_is_not_followed(task):
    for example in draw_examples(task, task.test_lengths, "test", 1, 40):
        assert floors.follow(task, example) == example.response


def test_answers_without_arithmetic_by_hand():
    example = Example("44@47=83", ",47@83=34,83@34=21,34@21=53,")
    assert floors.chain(floors.no_arithmetic, example) == ",47@83=00,83@00=83,00@83=83,83@83=00"


@pytest.mark.parametrize("task", floors.THREE)
def test_a_claim_that_answers_can_win_which_know_nothing_of_the_rule(task):
    rows = floors.measure(task, floors.wrong_rules(task) | floors.policies(task))
    for name, row in rows.items():
        assert split_means(row, task.claim.metrics[0])["OOD"] <= 0.05, name


def test_floors_of_the_page_that_are_others():
    assert PAGE.split("<!--floors-->\n\n")[1].split("\n<!--end-->")[0] == "\n".join(
        map(floors.tables, floors.THREE))
