"""The exercises: right answers pass, wrong ones are shown."""

from pathlib import Path
import re
from textwrap import dedent

import pytest
import torch

from extras import exercises
import latent_tokens
from latent_tokens import AugmentedRow, Placement, generate, make_batch, response_logits
from tasks import encode
from tests.conftest import refused, some_latents

ROOT = Path(latent_tokens.__file__).parent
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "exercises.md").read_text("utf-8"), re.S)

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


@pytest.mark.parametrize("diff", DIFFS)
def test_an_edit_of_the_page_fits_the_code(diff):
    name, *lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[0] in " -")
    assert f"{old}\n" in f"\n{(ROOT / name).read_text('utf-8')}"


def test_places_that_look_back(model, monkeypatch):
    """The edit of exercise 12: rows by hand, and decoding where training has them, too."""
    monkeypatch.setattr(latent_tokens, "PLACES", {**latent_tokens.PLACES})
    exec("".join(re.findall(r"^\+(PLACES.*\n)", DIFFS[-1], re.M)), vars(latent_tokens))
    assert AugmentedRow(Placement.parse("After_1"), encode("1,2,")).sources == [1, 2, 0, 3, 4, 0]
    queries = [encode("1,2,"), encode("44@47=83")]
    for latents in map(some_latents, ("After_2+Comma_1", "Random_2", "After_1-latest")):
        responses = generate(model, latents, queries, 40)
        batch = make_batch(latents.placement, queries, responses)
        assert (batch.sources < latents.placement.total).sum() > latents.placement.total
        assert torch.equal(response_logits(model, latents, batch).argmax(-1), batch.targets)
