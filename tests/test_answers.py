"""Generated answers with their first mistakes marked."""

import pytest

from extras import answers
from tasks import Example

EXAMPLE = Example("44@47=83,", "47@83=34,83@34=21,")


@pytest.mark.parametrize("text, expected", [
    ("47@83=34,83@34=21,", "without a mistake\n    47@83=34,\n    83@34=21,"),
    ("47@83=34,93@34=21,", "first mistake: character 10\n    47@83=34,\n    93@34=21,\n    ^"),
    ("47@", "first mistake: character 4\n    47@\n       ^"),
    ("47@83=34,", "first mistake: character 10\n    47@83=34,\n    \n    ^")])
def test_the_mark_stands_under_the_first_mistake_even_of_an_answer_cut_short(text, expected):
    assert answers.marked(EXAMPLE, text, width=9) == expected


def test_a_method_named_twice_answers_once_on_each_example(finished, capsys):
    answers.main([str(finished), "--methods", "Start_1+Comma_1", "Comma_1+Start_1",
                  "--examples", "2"])
    assert capsys.readouterr().out.count("Start_1+Comma_1 on ") == 2
