"""The exercises: right answers pass, wrong ones are shown."""

from textwrap import dedent

import pytest
import torch

from extras import exercises
from tests.conftest import refused

SOLUTION = '''
stands_before = lambda k, t: t > 0 and t % k == 0
position_ids = lambda is_latent: [is_latent[:slot].count(False) for slot in range(len(is_latent))]
sources = lambda token_ids, comma, m: [source for t, token_id in enumerate(token_ids)
                                       for source in [*range(m * (token_id == comma)), m + t]]
read_slots = lambda is_latent, query_slots: [query_slots - 1, *(
    slot for slot in range(query_slots, len(is_latent)) if not is_latent[slot])][:-1]
'''


def test_right_answers_pass_and_blank_or_missing_ones_do_not(tmp_path, capsys):
    file = tmp_path / "my.py"
    exercises.main(["--blank"])
    blank = capsys.readouterr().out
    for text, counts in ((SOLUTION, [4, 0, 0]), (blank, [0, 4, 0]),
                         (blank.replace("def sources", "def source"), [0, 4, 1])):
        file.write_text(text)
        exercises.main([str(file)])
        shown = capsys.readouterr().out
        assert [*map(shown.count, ("right on 300 rows", ": wrong", "not there"))] == counts


@pytest.mark.parametrize("name, wrong, shown", [
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
    drawn = exercises.first_mistake(name, wrong)
    assert drawn.split("\n\n", 1)[1] == dedent(shown).strip()


@pytest.mark.parametrize("wrong, shown", [
    (lambda is_latent: is_latent[2], "yours     IndexError('list index out of range')"),
    (lambda is_latent: is_latent.clear(), "yours     None"),
    (lambda is_latent: torch.arange(len(is_latent)), "yours     tensor([0, 1])"),
    (lambda is_latent: [0, 1, 1], "0  1  1\nright     0  1\n                ^")])
def test_an_answer_of_another_kind_or_length(wrong, shown):
    drawn = exercises.first_mistake("position_ids", wrong)
    assert drawn.startswith("position_ids([False, False])\n\nslot      0  1")
    assert drawn.endswith(shown)


@pytest.mark.parametrize("content", ["def (", "1 / 0", "import sys\nsys.exit(3)\n", None])
def test_a_file_that_cannot_be_run(content, tmp_path, capsys):
    if content:
        (tmp_path / "my.py").write_text(content)
    assert "my.py cannot be run: " in refused(capsys, exercises, tmp_path / "my.py")
