"""From lines of results to tables, verdicts and docs/results.md, worked by hand."""

import json
from pathlib import Path
import re

import pytest

from extras import claims, pictures, report, results, tables
from extras.experiments import Experiment, experiments, read
from tasks import TASKS, Claim, Generation

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def row(method: str, accuracy: dict[int, float], base=0, seed=0, **other) -> dict:
    """A row with the accuracy at each length; its exact is 0.5 throughout."""
    return {"task": "generation", "base": base, "method": method, "seed": seed,
            "tuning": {"steps": 300}, "task_checksum": 1, "base_checksum": 100 + base,
            "splits": {"ID": [1, 5], "OOD": [6, 24], "far OOD": [16, 24]},
            "lengths": list(accuracy), "accuracy": list(accuracy.values()),
            "exact": [0.5] * len(accuracy), "inserted": 4 * max(accuracy),
            "trained": 512, **other}


def only(rows: list[dict]) -> Experiment:
    experiment, = experiments(rows)
    return experiment


def kept(folder: Path, *lines: dict | str) -> str:
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(
        f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(folder)


def printed(capsys, *arguments: str) -> str:
    report.main(list(arguments))
    return capsys.readouterr().out


def test_lengths_or_seeds_or_two_bases_of_one_number_in_one_mean(tmp_path, capsys):
    """Two seeds on one base 0, one seed on another; a row that is kept twice counts once."""
    one = kept(tmp_path / "default", row("Comma_4", {5: 1.0, 6: 0.8, 16: 0.4}),
               *(row("Comma_4", {5: 1.0, 6: 1.0, 16: 0.4}, seed=1, seconds=s) for s in (8, 9)))
    other = kept(tmp_path / "OTHER", row("Comma_4", {5: 0.0, 6: 0.1, 16: 0.0}, base_checksum=9))
    assert printed(capsys, one, other, one).splitlines()[:3] == [
        "| generation | runs | trained | inserted at 16 | accuracy ID 5 | accuracy OOD 6-16 "
        "| accuracy far OOD 16 |", "|---|---|---|---|---|---|---|",
        "| `Comma_4` | 3 | 512 | 64 | 0.50 ± 0.71 | 0.35 ± 0.42 | 0.20 ± 0.28 |"]


@pytest.mark.parametrize("other, named", [
    ({"tuning": {"steps": 5}}, "steps 5 in place of 300"),
    ({"task_checksum": None}, "task_checksum None in place of 1")])
def test_experiments_mixed_in_one_table(tmp_path, capsys, other, named):
    out = printed(capsys, kept(tmp_path / "a", row("Comma_4", {16: 1.0}),
                               row("Comma_4", {16: 0.0}, **other)))
    assert out.count("| `Comma_4` | 1 |") == 2 and f"generation again, with {named}:" in out


def test_a_variation_beside_another_experiment():
    """The optimizer of one name in two settings, and controls of three runs, two of which are
    apart in steps and two in trials."""
    short, long, tried, adam, other = (
        {"steps": steps, "optimizer": name, "trials": trials} for steps, name, trials in (
            (5, "Muon", 1), (300, "Muon", 1), (300, "Muon", 3), (300, "AdamW", 1),
            (300, "AdamW", 2)))
    rows = [row(f"Comma_4:{name}", {16: value}, tuning=tuning) for name, value, tuning in (
        ("AdamW-1", 0.8, adam), ("random", 0.3, tried), ("random", 0.6, long),
        ("random", 0.2, short))]
    rows += [row("Comma_4:AdamW-1", {16: 0.7}, base=1, tuning=other),
             row("Comma_4:AdamW-3", {16: 0.5}, tuning=adam, task_checksum=2)]
    rows += [row("Comma_4", {16: value}, tuning=tuning)
             for value, tuning in ((0.1, short), (0.9, long), (0.4, tried))]
    assert [[each["accuracy"][0] for each in one.rows] for one in experiments(rows)] == [
        [0.1, 0.2], [0.9, 0.8, 0.6], [0.4, 0.3, 0.7], [0.5]]


@pytest.mark.parametrize("lines, named", [
    ([row("Comma_4", {6: 1.0}), "half", row("Comma_4", {6: 0.5})], "0, Comma_4, seed 0: lines of"),
    (["{}", "[3]", "no JSON"], "holds no results"), (None, "results.jsonl")])
def test_a_wrong_number_or_a_traceback_from_a_damaged_file(tmp_path, capsys, lines, named):
    folder = str(tmp_path) if lines is None else kept(tmp_path / "a", *lines)
    with pytest.raises(SystemExit, match="2"):
        report.main([folder])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and re.search(named, message)


def test_seeds_compared_with_other_seeds_or_on_tuned_lengths():
    """Pairs 0.2 and 0.1: mean 0.15, sd 0.0707, half-width 12.706 * 0.0707 / sqrt(2) = 0.635."""
    rows = [row("Comma_4", {5: 0.3, 16: far}, seed=seed) for seed, far in enumerate((1, 0.9, 0))]
    rows += [row("End_4", {5: 0.6, 16: 0.8}, seed=seed) for seed in (1, 0)]
    assert tables.claims_table([only(rows)]).splitlines()[2] == (
        "| Generation, accuracy, equations 16 (tuned on 5) | `Comma_4` 0.95 ± 0.07 "
        "| `End_4` 0.80 ± 0.00 | +0.15 | -0.49 to +0.79 | 2 of 2 | ordering only |")
    assert tables.claims_table([only(rows[:1] + rows[-1:])]) == ""  # one pair


@pytest.mark.parametrize("values, verdict", [
    ((0.4, 0.5) * 4 + (0.4, -0.1), "reproduced"),
    ((0.4, 0.5) * 4 + (-0.1, -0.1), "ordering only"),  # eight pairs of ten
    ((0.9, 0.9) + (0.01, 0.01) * 4, "ordering only"),  # one base makes the mean
    ((0.5, 0.5), "ordering only"),  # one base
    ((-0.1, 0.0) * 5, "not reproduced")])
def test_verdicts_kinder_than_their_definition_or_an_interval_beyond_1(values, verdict):
    ours = {((index // 2, 1), index % 2): value for index, value in enumerate(values)}
    theirs = dict.fromkeys(ours, 0.0)  # two seeds on each base
    assert claims.Difference(("Comma_4", "Start_4"), [ours, theirs]).verdict == verdict
    assert claims.interval([0.99, 0.5]) == (-1.0, 1.0)


def test_a_new_task_that_needs_an_edit(monkeypatch):
    class Echo(Generation):
        length_name, claim = "{} words", Claim(("Comma_4",), ("End_4",), "exact", "OOD")

    monkeypatch.setitem(TASKS, "echo", Echo())
    rows = [row(method, {6: 1.0}, base, task="echo-3")
            for method in ("Comma_4", "End_4") for base in (0, 1)]
    table = tables.claims_table([only(rows)])
    assert "| Echo-3, exact, 6 words | `Comma_4` 0.50 ± 0.00 |" in table
    unheard = only([row("8_2", {6: 0.25}, task="unheard")])
    assert tables.methods_table(unheard).endswith("| `8_2` | 1 | 512 | 24 | 0.25 |\n")


def test_an_ascii_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "encodes", str.isascii)
    rows = [row("Comma_4", {5: 1.0, 6: 0.5, 7: 0.0}, base) for base in (0, 1)]
    out = printed(capsys, kept(tmp_path / "a", *rows))
    assert out.isascii() and "0.25 +/- 0.00" in out


def test_docs_made_of_other_rows(monkeypatch, tmp_path):
    monkeypatch.delitem(TASKS, "retrieval", raising=False)  # where testbeds.py has added it
    assert results.page(ROOT / "docs" / "results") == PAGE
    pictures.write(experiments(read([ROOT / "docs" / "results" / "confirm.jsonl"])), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"{name}.svg": (ROOT / "docs" / f"{name}.svg").read_bytes()
        for name in ("generation", "repetition", "summation", "differences")}


def test_a_table_of_the_readme_that_was_edited():
    section = re.search(r"^## Results$.*?(?=^## )", README, flags=re.DOTALL | re.MULTILINE)[0]
    shown = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    assert shown and [table for table in shown if f"\n\n{table}\n" not in PAGE] == []


def unfounded(text: str, page: str) -> list[str]:
    """Each mean ± sd that no row of the page has of the method that is named last before it."""
    wrong = []
    for paragraph in re.split(r"\n\n|\n(?=[*|])", text):
        paragraph = " ".join(paragraph.split())
        for figure in re.finditer(r"\d\.\d\d ± \d\.\d\d", paragraph):
            name = (re.findall(r"`([^`]+)`", paragraph[:figure.start()]) or ["nothing"])[-1]
            line = rf"^\| `{re.escape(name)}` \|(.*\|)? {figure[0]} \|"
            if not paragraph.startswith("|") and not re.search(line, page, flags=re.MULTILINE):
                wrong.append(f"{name} {figure[0]}")
    return wrong


def test_a_figure_of_the_readme_that_is_no_result():
    page = "| `Comma_4` | 10 | 0.93 ± 0.05 |\n| `End_4` | 0.16 ± 0.02 | |\n"
    assert unfounded("* `Comma_4`\n  0.93 ± 0.05, `End_4` 0.16 ± 0.02", page) == []
    assert unfounded("`Comma_4` 0.16 ± 0.02", page) == ["Comma_4 0.16 ± 0.02"]
    assert unfounded("`Comma_4`\n* 0.93 ± 0.05", page) == ["nothing 0.93 ± 0.05"]
    assert unfounded(README, PAGE) == []


def test_columns_of_the_page_with_the_values_of_others():
    rows = [row("Start_4", {16: accuracy}, base, seed)
            for base, seed, accuracy in ((3, 0, 0.0), (3, 1, 0.5), (4, 0, 1.0))]
    assert results.base_table(only(rows)).splitlines()[::2] == [
        "| accuracy far OOD 16, by base | 3 | 4 |", "| `Start_4` | 0.25 | 1.00 |"]
    rows = [row("Comma_4", {6: 0.0, 16: accuracy}, base, task=task) for task, base, accuracy in (
        ("generation", 15, 0.75), ("generation-0.1", 150, 0.5), ("generation-0.1", 151, 1.0),
        ("generation-0", 150, 0.25), ("summation", 15, 0.1))]
    head, _, _, line, *_ = results.dial_table(experiments(rows)).splitlines()
    assert head == "| Generation, accuracy far OOD; rules restated with | 0 | 0.1 | 0.5 |"
    assert line == "| `Comma_4` | 0.25 | 0.75 ± 0.35 | 0.75 |"
    assert results.dial_table(experiments(rows[:1])) == ""
