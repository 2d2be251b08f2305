"""Commands that read a run or add to it: a result is only taken for what it is."""

import random
import re
import shlex

import pytest
import torch

from extras import answers, controls, report, score, show, testbeds
from extras.runs import Control, Run, other_rules
import latent_tokens
from latent_tokens import LatentTokens, Placement
from model import GPT
from tasks import TASKS, TOKEN_ID, Example, Repetition, Task
from tests.conftest import refused, run
import train
from train import RESULTS, TuneConfig, key, read_results, weights_checksum

pytestmark = pytest.mark.usefixtures("tiny")
LATENTS = "latents/generation-base60-Start_2-seed0.pt"
OTHERS = "generation-base60-Comma_1-seed0.pt"


class Fork(Repetition):
    name, claim = "fork", Task.claim


def rows_in(folder) -> dict[str, dict]:
    """The results by method; none may be there twice."""
    rows = read_results(folder / RESULTS)
    assert len({key(row) for row in rows}) == len(rows)
    return {row["method"]: row for row in rows}


def spoil(path, change) -> None:
    """Change a file that torch.save has written."""
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(), lambda path: path.write_text("damaged"),
    lambda path: path.write_bytes((path.parent / OTHERS).read_bytes()),
    lambda path: spoil(path, lambda saved: saved["vectors"].mul_(2)),
    lambda path: spoil(path, lambda saved: saved.update(placement="End_2"))])
def test_lost_or_foreign_latents_are_refused(damage, finished, capsys):
    damage(finished / LATENTS)
    assert LATENTS in refused(capsys, show, finished, "--method", "Start_2")


def test_another_base_or_task_of_the_same_name_has_no_results(finished, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(TASKS["generation"]), "target_rule", "++9")
        assert "no result of Start_2" in refused(capsys, show, finished, "--method", "Start_2")
    spoil(finished / "generation-base60.pt",
          lambda saved: saved["weights"]["head.weight"].add_(1e-3))
    assert "no result of Start_2" in refused(capsys, show, finished, "--method", "Start_2")
    assert "no result of base" in refused(capsys, controls, finished)


def test_the_command_that_an_error_names_makes_what_is_missing(finished, capsys):
    folder = finished.rename(finished.with_name("with spaces"))
    arguments = ["--method", "End_1", "--seed", "1", "--base", "1"]
    for _ in range(2):
        error = refused(capsys, show, folder, *arguments)
        train.main(shlex.split(error.split("python train.py ")[1]))
    show.main([str(folder), *arguments])


def test_what_does_not_fit_is_refused_before_the_work(finished, capsys):
    before = (finished / RESULTS).read_bytes()
    for name in ("base:random", "Comma_1:shuffled", "Comma_4:turned", "base"):
        refused(capsys, controls, finished, "--rows", "Start_1", name)
    for name, expected in (("Comma_1:Comma_3", "Comma_3 needs 3 vectors"),
                           ("Comma_1:shuffled", "is no control"),
                           ("Comma_1:shufled", "unknown placement 'shufled'")):
        assert expected in refused(capsys, score, name, "--folder", finished)
    assert (finished / RESULTS).read_bytes() == before


def test_what_is_shuffled_random_and_placed_elsewhere():
    latents = LatentTokens(Placement.parse("Start_1+Comma_2"), 4)
    latents.initialize(torch.randn(9, 4), torch.Generator().manual_seed(0))
    random_, shuffled, end, sum_ = (
        Control.parse(f"Comma_2+Start_1:{change}").of(latents, seed=0)
        for change in ("random", "shuffled", "End_2", "40_1+End_2"))
    assert torch.equal(shuffled.vectors, latents.vectors[[2, 0, 1]])
    assert random_.placement == shuffled.placement == latents.placement
    torch.testing.assert_close(random_.vectors.norm(dim=1), latents.vectors.norm(dim=1))
    for other in (latents.vectors, torch.randn(3, 4, generator=torch.Generator().manual_seed(0))):
        assert (torch.cosine_similarity(random_.vectors, other) < 0.99).all()
    assert [str(each.placement) for each in (end, sum_)] == ["End_2", "End_2+40_1"]
    assert torch.equal(end.vectors, latents.vectors[:2])
    assert torch.equal(sum_.vectors, latents.vectors)


def test_controls_insert_as_many_latents_as_the_proposed_placement():
    assert controls.default_rows(TASKS["repetition"]) == [
        "Start_4", "End_4", "Start_2+Comma_2", "Start_2+Comma_2-own", "Start_8", "Start_14",
        "Start_2+Comma_2:random", "Start_2+Comma_2:shuffled", "full"]  # n = 2 and 5 here
    assert {"Start_12", "Start_24", "full"} < {*controls.default_rows(Fork())}


def test_results_of_controls_join_the_run_once_and_say_what_they_are(finished, monkeypatch):
    monkeypatch.setattr(controls, "follow", lambda rules, model, *arguments: {
        "lengths": [1], "accuracy": [0.0], "exact": [0.0], "model": weights_checksum(model)})
    names = ["Comma_1-own", "Start_1+Comma_1:shuffled", "Start_2:random", "full"]
    for _ in range(2):
        controls.main([str(finished), "--rows", "Comma_1+Start_1", *names])
    rows = rows_in(finished)
    names += [f"{method}, other rules, {when} full" for method in ("instruction", "reminders")
              for when in ("before", "after")]
    base = GPT.load(finished / "generation-base60.pt")
    size = sum(weights.numel() for weights in base.parameters())
    assert list(rows)[6:] == names
    assert [rows[name]["trained"] for name in names] == [16, 32, 0, size, 0, size, 0, size]
    assert [start["lr"] for start in rows["full"]["starts"]] == [1e-4, 3e-4, 1e-3]
    assert all(len(start["losses"]) == 1 for start in rows["full"]["starts"])
    checksums = [rows[name]["vectors_checksum"] for name in ("Start_2", "Start_2:random", "full")]
    assert len(set(checksums)) == 3 and checksums[2] == 0
    tested = [rows[name]["model"] for name in names[4:]]
    assert tested == [rows["base"]["base_checksum"], tested[1]] * 2 and len(set(tested)) == 2


def test_all_other_rules_of_a_family_count_equally(model, monkeypatch):
    for name, count in {"generation": 53, "repetition": 3, "summation": 2}.items():
        rules = [other.target_rule for other in other_rules(TASKS[name])]
        assert len(set(rules)) == len(rules) == count and TASKS[name].target_rule not in rules

    def test(model, latents, task, method, seed, config) -> dict:
        assert config.test_examples == 3  # of ten
        right = float(task.target_rule == "+1")
        return {"lengths": [1, 2], "accuracy": [right, right], "exact": [right, right / 2]}

    monkeypatch.setattr(controls, "test", test)
    rules, config = other_rules(TASKS["repetition"]), TuneConfig(test_examples=10)
    assert controls.follow(rules, model, None, "base", 0, config) == {
        "lengths": [1, 2], "accuracy": pytest.approx([1 / 3, 1 / 3]),
        "exact": pytest.approx([1 / 3, 1 / 6])}


def test_the_dial_restates_as_often_as_it_says():
    """Of documents that state rules, before each equation; 0.05 is of late first statements."""
    for probability in (0, 0.5):
        task, rng = testbeds.Dial(probability), random.Random(0)
        texts = [task.document(rng, 1.0) for _ in range(1000)]
        boundaries = sum(text.count(",") - 1 for text in texts)
        assert sum(text.count(",G") for text in texts) / boundaries == pytest.approx(
            0.02 + 0.73 * probability, abs=0.03)
    assert TASKS["generation"].restated == 0


def test_the_dial_runs_as_a_task(tmp_path, monkeypatch):
    for rate in ("0.05", "0.1", "0.2", "0.5"):
        monkeypatch.setitem(TASKS, f"generation-{rate}", None)  # so that they go after the test
    testbeds.main(["--fast", "--device", "cpu", "--out", str(tmp_path), "--task", "generation-0.1"])
    assert list(rows_in(tmp_path)) == [*train.REFERENCES, "Start_4", "Comma_4"]


@pytest.mark.parametrize("text, expected", [
    ("47@83=34,83@34=21,", "without a mistake\n    47@83=34,\n    83@34=21,"),
    ("47@83=34,93@34=21,", "first mistake: character 10\n    47@83=34,\n    93@34=21,\n    ^"),
    ("47@", "first mistake: character 4\n    47@\n       ^"),
    ("47@83=34,", "first mistake: character 10\n    47@83=34,\n    \n    ^")])
def test_the_mark_stands_under_the_first_mistake_even_of_an_answer_cut_short(text, expected):
    example = Example("44@47=83,", "47@83=34,83@34=21,")
    assert answers.marked(example, text, width=9) == expected


def test_a_line_for_each_name_one_start_and_nothing_saved(finished, capsys, monkeypatch):
    monkeypatch.setattr(score, "tune", lambda *arguments: starts.append(
        len(arguments[-1].starts)) or train.tune(*arguments))
    starts = []
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    names = ["Comma_1", "Start_2:End_1", "Comma_1:random", "Start_2:shuffled"]
    score.main([*names, "--tune", "End_1", "--folder", str(finished)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].strip() for line in lines] == ["accuracy", "base", *names, "End_1, tuned now"]
    assert starts == [1]
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_means_are_by_items_and_of_the_tasks_splits(model, monkeypatch):
    """Cut off after four items."""
    monkeypatch.setattr(train, "answers", lambda base, latents, task, method, examples: [
        "".join(re.findall("[^,]*[,;]", example.response)[:4]) for example in examples])
    run, none = Run(None, [], TASKS["repetition"], 0, model), LatentTokens(Placement(), 16)
    model.notes["pretraining"] = {}
    assert list(score.score(run, none, seed=0).values()) == pytest.approx(
        [1, (4 / 5 + 4 / 7) / 2, 4 / 7])


def test_a_task_of_a_fork_needs_no_other_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "fork", Fork())
    run(tmp_path, "--task", "fork")
    controls.main([str(tmp_path), "--task", "fork", "--rows", "Comma_4-own", "full"])
    assert {"Comma_4-own", "full", "reminders, other rules, after full"} <= rows_in(tmp_path).keys()
    capsys.readouterr()
    score.main(["Comma_4", "--folder", str(tmp_path), "--task", "fork"])
    show.main([str(tmp_path), "--task", "fork", "--method", "Comma_4", "--prompt", "1>"])
    answers.main([str(tmp_path), "--task", "fork"])
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "Comma_4 on 1> writes" in printed and "End_4 on " in printed
    assert "### Fork" in printed


def test_a_separator_of_a_fork_needs_no_other_edit(finished, monkeypatch, capsys):
    monkeypatch.setitem(latent_tokens.SEPARATORS, "Equals", (TOKEN_ID["="],))
    run(finished, "--methods", "Equals_1")
    capsys.readouterr()
    score.main(["Comma_1:Equals_1", "Equals_1", "--folder", str(finished)])
    show.main([str(finished), "--method", "Equals_1", "--prompt", "44@47="])
    printed = capsys.readouterr().out
    assert printed.splitlines()[3].startswith("Equals_1 ") and "4    7   <E>   =" in printed
