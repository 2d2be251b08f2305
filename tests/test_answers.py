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
def test_the_first_mistake_is_marked(text, expected):
    """Bug caught: a mark off by one, in the wrong line, or missing where an answer is cut short."""
    assert answers.marked(EXAMPLE, text, width=9) == expected


def test_answers_of_a_run(finished, capsys):
    """Bug caught: another example than asked for, or latents of another method."""
    answers.main([str(finished), "--methods", "Start_2", "--examples", "2"])
    assert capsys.readouterr().out.count("Start_2 on ") == 2


def test_latents_that_are_not_there_are_named(finished, capsys):
    """Bug caught: a traceback for a method that was not tuned."""
    with pytest.raises(SystemExit):
        answers.main([str(finished), "--methods", "Comma_4"])
    assert "generation-base0-Comma_4-seed0.pt: tune these latents" in capsys.readouterr().err
