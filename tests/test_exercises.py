"""The exercises: right answers pass, wrong ones are shown."""

import doctest

import pytest

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


@pytest.mark.parametrize("name, wrong", [
    ("position_ids", lambda is_latent: list(range(len(is_latent)))),  # positions of their own
    ("sources", lambda token_ids, comma, m: [m + t for t in range(len(token_ids))]),
    ("read_slots", lambda is_latent, query_slots: [  # the naive shift by one
        slot - 1 for slot in range(query_slots, len(is_latent)) if not is_latent[slot]]),
    ("stands_before", lambda k, t: t % k == 0)])
def test_a_likely_mistake_is_shown(name, wrong):
    """Bug caught: rows on which the mistake that students make does not show."""
    shown = exercises.first_mistake(name, wrong)
    assert "yours" in shown and "right" in shown


def test_the_examples_in_the_blank_functions(solution):
    """Bug caught: a docstring that contradicts the real function."""
    blank = {}
    exec(exercises.BLANK, blank)
    for name in ("position_ids", "sources", "read_slots"):
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
