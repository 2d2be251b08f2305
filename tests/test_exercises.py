"""The exercises: right answers pass, wrong ones are shown."""

import doctest
from textwrap import dedent

import pytest
import torch

from extras import exercises

SOLUTION = '''
def position_ids(is_latent):
    ids, t = [], 0
    for latent in is_latent:
        ids.append(t)
        t += not latent
    return ids


def sources(token_ids, comma, m):
    slots = []
    for t, token_id in enumerate(token_ids):
        if token_id == comma:
            slots += range(m)
        slots.append(m + t)
    return slots


def read_slots(is_latent, query_slots):
    reads, last = [], query_slots - 1
    for slot in range(query_slots, len(is_latent)):
        if not is_latent[slot]:
            reads.append(last)
            last = slot
    return reads


def stands_before(k, t):
    return t > 0 and t % k == 0
'''


@pytest.fixture
def solution(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(SOLUTION)
    return exercises.load(path)


def test_right_answers_pass(tmp_path, capsys):
    """Bug caught: an exercise that nobody can solve."""
    path = tmp_path / "my.py"
    path.write_text(SOLUTION)
    exercises.main([str(path)])
    assert capsys.readouterr().out.count("right on 300 rows") == 4


def test_blank_functions_are_wrong(tmp_path, capsys):
    """Bug caught: a comparison that anything passes."""
    exercises.main(["--blank"])
    path = tmp_path / "my.py"
    path.write_text(capsys.readouterr().out)
    exercises.main([str(path)])
    assert capsys.readouterr().out.count(": wrong") == 4


@pytest.mark.parametrize("name, wrong, shown", [
    ("stands_before", lambda k, t: t > 0 and t % (k + 1) == 0, """
        t           0      1
        yours     False  False
        right     False   True
                           ^
    """),
    ("position_ids", lambda is_latent: list(range(len(is_latent))), """
        slot       0    1    2
        input     <0>   0    5
        yours      0    1    2
        right      0    0    1
                        ^
    """),
    ("sources", lambda token_ids, comma, m: [m + t for t in range(len(token_ids))], """
        input      4   <0>   3
        yours      1    2
        right      1    0    2
                        ^
    """),
    ("read_slots", lambda is_latent, query_slots: [  # the naive shift by one
        slot - 1 for slot in range(query_slots, len(is_latent)) if not is_latent[slot]], """
        slot       0    1    |    2    3    4
        input      2    8    |    7   <0>   3

        predicts  7  3
        yours     1  3
        right     1  2
                     ^
    """)])
def test_a_likely_mistake_is_drawn(name, wrong, shown):
    """Bug caught: rows on which the mistake that students make does not show, or ^ elsewhere."""
    drawn = exercises.first_mistake(name, wrong)
    assert drawn.split("\n\n", 1)[1] == dedent(shown).strip()


def forgetful(is_latent):
    return is_latent[len(is_latent)]


def emptying(is_latent):
    while is_latent:
        is_latent.pop()


@pytest.mark.parametrize("wrong, shown", [
    (forgetful, f"IndexError: list index out of range (line {forgetful.__code__.co_firstlineno + 1}"
     " of test_exercises.py)"),
    (emptying, "None, which is not a list"),
    (lambda is_latent: tuple(range(len(is_latent))), "(0, 1), which is not a list"),
    (lambda is_latent: torch.arange(len(is_latent)), "tensor([0, 1]), which is not a list")])
def test_an_answer_that_is_no_list(wrong, shown):
    """Bug caught: a traceback through our code, or a function that empties the row it is shown."""
    drawn = exercises.first_mistake("position_ids", wrong)
    assert drawn.startswith("position_ids([False, False])\n\n")
    assert drawn.endswith(f"yours     {shown}")


def test_the_examples_in_the_blank_functions(solution):
    """Bug caught: a docstring that contradicts the real function."""
    blank = {}
    exec(exercises.BLANK, blank)
    for name in ("stands_before", "position_ids", "sources", "read_slots"):
        function = getattr(solution, name)
        tests = doctest.DocTestParser().get_doctest(blank[name].__doc__, {name: function}, name,
                                                    None, None)
        assert tests.examples and doctest.DocTestRunner().run(tests).failed == 0


@pytest.mark.parametrize("content", ["def (", "1 / 0"])
def test_a_file_that_cannot_be_run(content, tmp_path, capsys):
    """Bug caught: a traceback through our code for a student's typing error."""
    path = tmp_path / "my.py"
    path.write_text(content)
    with pytest.raises(SystemExit):
        exercises.main([str(path)])
    assert "cannot be run" in capsys.readouterr().err
