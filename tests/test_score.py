"""Tuned vectors in other places: who gets which, and nothing is saved."""

import pytest
import torch

from extras import score
from latent_tokens import LatentTokens, Placement, UserError
import train

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def folder(tmp_path):
    train.main(["--fast", "--device", "cpu", "--out", str(tmp_path), "--methods", "Comma_2"])
    return tmp_path


def latents(notation: str) -> LatentTokens:
    made = LatentTokens(Placement.parse(notation), 8)
    torch.nn.init.normal_(made.vectors)
    return made


def test_vectors_keep_their_values_and_order():
    """Bug caught: vectors of another group, or of a fresh initialization, scored as moved ones."""
    tuned = latents("Comma_3")
    for notation, count in (("Start_3", 3), ("Comma_2", 2), ("End_1+Comma_1", 2), ("40_3", 3)):
        placed = score.place(tuned, notation)
        assert str(placed.placement) == notation
        assert torch.equal(placed.vectors, tuned.vectors[:count])


def test_more_vectors_than_there_are():
    """Bug caught: vectors of zero, scored in silence."""
    with pytest.raises(UserError, match="Comma_3 needs 3 vectors, Start_2 has 2"):
        score.place(latents("Start_2"), "Comma_3")


def test_a_line_for_each_name_and_nothing_saved(folder, capsys):
    """Bug caught: a name that is left out, or rows that join those of the run."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    names = ["Comma_2", "Comma_2:Start_2", "Comma_2:random", "Comma_2:shuffled"]
    score.main([*names, "--tune", "End_1", "--folder", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines] == [
        "accuracy", "base", *names, "End_1, tuned now"]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_three_accuracies(model, monkeypatch):
    """Bug caught: lengths of another split. Answers stop after three equations of five."""
    monkeypatch.setattr(score, "answers", lambda model, latents, task, method, examples: [
        example.response[:3 * len("44@47=83,")] for example in examples])
    assert score.score(model, latents("Comma_1"), seed=0) == pytest.approx([1, 1 / 3, 0])


@pytest.mark.parametrize("name, expected", [
    ("Start_2", "tune these latents with python train.py"), ("Comma_2:Comma_3", "needs 3 vectors"),
    ("Comma_2:removed", "unknown placement 'removed'"), ("base", "unknown placement 'base'")])
def test_mistakes_are_one_line(name, expected, folder, capsys):
    """Bug caught: a traceback, or a line for something else than was asked for."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        score.main([name, "--folder", str(folder)])
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
