"""Tuned vectors in other places: who gets which, and nothing is saved."""

import pytest
import torch

from extras import score
from extras.runs import Control, Run
from latent_tokens import LatentTokens, Placement
from tasks import TASKS
from tests.command_line import refused
import train


@pytest.mark.parametrize("notation", ["Start_3", "Comma_2", "End_1+Comma_1", "40_3"])
def test_vectors_keep_their_values_and_order(notation):
    latents = LatentTokens(Placement.parse("Comma_3"), 8)
    latents.vectors.data.normal_()
    placed = Control.parse(f"Comma_3:{notation}").of(latents, 0)
    assert str(placed.placement) == notation
    assert torch.equal(placed.vectors, latents.vectors[:placed.placement.total])


def test_a_line_for_each_name_one_trial_and_nothing_saved(finished, capsys, monkeypatch):
    monkeypatch.setattr(score, "tune", lambda *arguments: trials.append(
        len(arguments[-1].trials)) or train.tune(*arguments))
    trials = []
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    names = ["Comma_1", "Start_2:End_1", "Comma_1:random", "Start_2:shuffled",
             "Start_1+Comma_1:random"]
    score.main([*names, "--tune", "End_1", "--folder", str(finished)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines] == ["accuracy", "base", *names, "End_1, tuned now"]
    assert trials == [1]
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name, items, expected", [
    ("generation", 4, [1, 1 / 3, 0]), ("repetition", 4, [1, (4 / 5 + 4 / 7) / 2, 4 / 7])])
def test_means_are_by_items_and_of_the_tasks_splits(name, items, expected, model, tiny, monkeypatch):
    """Cut off after these many parts between commas: the first one of Generation is empty."""
    def cut(text: str) -> str:
        parts = text.split(",")
        return text if len(parts) <= items else ",".join(parts[:items]) + ","

    monkeypatch.setattr(train, "answers", lambda base, latents, task, method, examples: [
        cut(example.response) for example in examples])
    run, none = Run(None, [], TASKS[name], 0, model), LatentTokens(Placement(), 16)
    assert list(score.score(run, none, seed=0).values()) == pytest.approx(expected)


@pytest.mark.parametrize("name, expected", [
    ("Start_3", "make one with python train.py"), ("Comma_1:Comma_3", "Comma_3 needs 3 vectors"),
    ("Comma_1:shuffled", "is no control"), ("base", "unknown placement 'base'"),
    ("Comma_1:shufled", "unknown placement 'shufled'")])
def test_mistakes_are_one_line(name, expected, finished, capsys):
    assert expected in refused(capsys, score, name, "--folder", finished)
