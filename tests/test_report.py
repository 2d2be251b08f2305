"""From lines of results to tables, verdicts and docs/results.md, worked by hand."""

import json
from pathlib import Path
import re

import pytest

from extras import claims, pictures, report, results, tables
from extras.experiments import Experiment, experiments, read
from tasks import TASKS, Claim, Generation
from train import split_means

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def row(method: str, exact: dict[int, float], base=0, seed=0, **other) -> dict:
    """A row with the share of exact answers at each length; its accuracy is 0.5 throughout."""
    return {"task": "generation", "base": base, "method": method, "seed": seed,
            "tuning": {"steps": 300}, "task_checksum": 1, "base_checksum": 100 + base,
            "pretraining": {"steps": 900, "model": {"n_layer": 4, "n_embd": 128}},
            "splits": {"ID": [1, 5], "OOD": [6, 24], "far OOD": [16, 24]},
            "lengths": list(exact), "exact": list(exact.values()),
            "accuracy": [0.5] * len(exact), "inserted": 4 * max(exact),
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
    one = kept(tmp_path / "default", row("8_2", {5: 1.0, 6: 0.8, 16: 0.4}, task="summation"),
               *(row("8_2", {5: 1.0, 6: 1.0, 16: 0.4}, seed=1, seconds=s, task="summation")
                 for s in (8, 9)))
    other = kept(tmp_path / "OTHER", row("8_2", {5: 0.0, 6: 0.1, 16: 0.0}, base_checksum=9,
                                         task="summation"))
    assert printed(capsys, one, other, one).splitlines() == [
        "### Summation", "",
        "| summation | runs | trained | inserted at 16 | exact ID 5 | exact OOD 6-16 "
        "| exact far OOD 16 |", "|---|---|---|---|---|---|---|",
        "| `8_2` | 3 | 512 | 64 | 0.50 ± 0.71 | 0.35 ± 0.42 | 0.20 ± 0.28 |"]


@pytest.mark.parametrize("other, named", [
    ({"tuning": {"steps": 5}}, "steps 5 in place of 300"),
    ({"task_checksum": None}, "task_checksum None in place of 1"),
    ({"pretraining": {"steps": 9, "model": {"n_layer": 6, "n_embd": 192}}},
     "pre-training steps 9 in place of 900, n_layer 6 in place of 4, n_embd 192 in place of 128")])
def test_experiments_mixed_in_one_table(tmp_path, capsys, other, named):
    """Two sizes of model, for one, in two folders; 300.0 steps are 300."""
    out = printed(capsys, kept(tmp_path / "a", row("Comma_4", {16: 1.0})),
                  kept(tmp_path / "b", row("Comma_4", {16: 0.0}, 1, **other),
                       row("Comma_4", {16: 0.0}, 2, tuning={"steps": 300.0})))
    runs = re.findall(r"`Comma_4` \| (\d) \|", out)
    assert runs == ["2", "1"] and f"\n### Generation, with {named}\n" in out


@pytest.mark.parametrize("lines, named", [
    ([row("Comma_4", {6: 1.0}), "half", row("Comma_4", {6: 0.5})], "0, Comma_4, seed 0: lines of"),
    (["{}", "[3]", "no JSON", row("Comma_4", {6: 1.0}) | {"lengths": ["6"]}], "holds no results"),
    (None, "results.jsonl")])
def test_a_wrong_number_or_a_traceback_from_a_damaged_file(tmp_path, capsys, lines, named):
    folder = str(tmp_path) if lines is None else kept(tmp_path / "a", *lines)
    with pytest.raises(SystemExit, match="2"):
        report.main([folder])
    assert re.search(f"{named}.*\n$", capsys.readouterr().err)


@pytest.mark.parametrize("odd", [row("Comma_4", {4: 1.0, 5: float("nan"), 6: 1.0}, 9),
                                 row("Comma_4", {5.0: 1.0, 6.0: 1.0}, 9)])
def test_a_traceback_or_a_verdict_from_nan_or_a_length_that_is_no_int(tmp_path, capsys, odd):
    """One base of ten; and a byte-order mark at the start of the file."""
    lines = [row(method, {5: 1.0, 6: far}, base) for method, far, bases in (
        ("Comma_4", 1.0, range(9)), ("Start_4", 0.5, range(10))) for base in bases]
    folder = kept(tmp_path / "a", "\ufeff" + json.dumps(row("End_4", {6: 0.5})), *lines, odd)
    assert "nan" not in printed(capsys, folder) + printed(capsys, folder, "--svg", str(tmp_path))
    assert "nan" not in (tmp_path / "generation.svg").read_text()
    one = claims.differences(experiments(read([Path(folder)])))[0]
    assert one.methods[1] == "Start_4" and len(one.drops) >= 9 and min(one.drops) > 0


def test_mistakes_that_add_up_taken_for_fading():
    """Of 1.0, 0.8 and 0.4 at lengths 1, 2, 3: 0.8 at length 2, 0.5 at length 3, (0.8 + 0.4) / 1.8
    of both; with another row of that base that has 1.0, 0.0 and 0.0, 1.2 / 2.8."""
    rows = [row("Comma_4", {1: 1.0, 2: 0.8, 3: 0.4}), row("Start_4", {1: 0.0, 2: 0.0, 3: 0.0}),
            row("Comma_4", {1: 1.0, 2: 0.0, 3: 0.0}, seed=1), row("End_4", {2: 1.0, 3: 0.5})]
    shares = [only(rows[:2]).still_right("Comma_4", lengths).values()
              for lengths in ([2], [3], [2, 3], [1])]
    assert list(map(list, shares)) == [[pytest.approx(share)] for share in (0.8, 0.5, 1.2 / 1.8, 1)]
    assert only(rows).still_right("Comma_4", [2, 3]) == {(0, 100): pytest.approx(1.2 / 2.8)}
    assert only(rows).still_right("Start_4", [2, 3]) == {}
    assert only(rows).still_right("End_4", [2, 3]) == {(0, 100): 0.5}
    assert "| `Comma_4` | 0.67 |" in tables.fading_table(only(rows))
    assert tables.fading_table(only([row("8_2", {5: 1.0}, task="summation")])) == ""


def compared(*values: tuple[float, ...], **other) -> list[claims.Difference]:
    """Comma_4 against Start_4 by exact, with these values on each base: ID and OOD of either."""
    return claims.differences([only([
        row(method, {5: tuned, 6: longer}, base, **other) for base, each in enumerate(values)
        for method, tuned, longer in (("Comma_4", *each[:2]), ("Start_4", *each[2:]))])])[:1]


def test_bases_compared_with_other_bases_or_seeds_counted_as_bases():
    """Base 0 has two seeds of Comma_4, base 1 none of Start_4, base 2 none of Comma_4."""
    rows = [row("Comma_4", {5: 0.9, 6: far}, seed=seed) for seed, far in enumerate((1, 0.5))]
    rows += [row("Comma_4", {5: 1.0, 6: 1.0}, 1), row("Start_4", {5: 0.8, 6: 0.25}),
             row("Start_4", {5: 0.0, 6: 0.0}, 2), row("End_4", {6: 0.0})]
    one, _ = claims.differences([only(rows)])
    assert one.values("OOD") == [(0.75, 0.25)] and one.methods == ("Comma_4", "Start_4")
    assert one.out_of_distribution == [0.5] and one.drops == [pytest.approx(0.4)]


def test_sign_flips_and_holms_correction_by_hand():
    assert claims.sign_flip([1, 1, 1]) == 1 / 8
    assert claims.sign_flip([1, 2, -3]) == 5 / 8  # 0 or more: +++, ++-, +-+, -++, --+
    assert claims.sign_flip([0.1 + 0.2, -0.3]) == 3 / 4  # 0 but for rounding
    assert claims.sign_flip([0.5] * 10) == 1 / 1024 and claims.sign_flip([0.0] * 3) == 1
    # Times 4, 3, 2, 1 from the least on, and never less than the one before.
    assert claims.holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert claims.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_test_of_many_bases_that_never_ends():
    """Beyond 20 bases signs are drawn: near the exact p of 20, and never 0."""
    values = [0.5, 0.4, 0.3, -0.2, -0.1] * 4
    assert claims.sign_flip(values + [1e-12]) == pytest.approx(claims.sign_flip(values), abs=0.002)
    assert claims.sign_flip([1.0] * 28) == 1 / 100_001
    assert "p (100,000 draws)" in tables.claims_table([each.experiment for each in compared(
        *[BOTH] * 21)])


@pytest.mark.parametrize("count, expected", [(1, (0, 0)), (3, (0, 2)), (8, (0, 7)), (9, (1, 7)),
                                             (10, (1, 8)), (12, (2, 9))])
def test_an_inner_range_that_does_not_hold_the_median(count, expected):
    assert claims.inner_range([float(value) for value in reversed(range(count))]) == expected


BOTH, EQUAL, CONSTANT, LESS = (1, 1, 1, 0.5), (1, 1, 1, 1), (1, 1, 0.5, 0.5), (1, 0.5, 1, 0.6)


@pytest.mark.parametrize("values, above, verdict", [
    ([BOTH] * 9 + [LESS], 9, "reproduced"), ([BOTH] * 8 + [LESS] * 2, 8, "ordering only"),
    ([BOTH] * 4, 4, "ordering only"),
    ([CONSTANT] * 10, 0, "not reproduced"), ([EQUAL] * 10, 0, "not reproduced"),
    ([LESS] * 10, 0, "not reproduced")])
def test_verdicts_kinder_than_their_definition(values, above, verdict):
    found = compared(*values)
    (_, judged), = claims.verdicts(found).values()
    assert (found[0].above_zero, judged) == (above, verdict)


def test_claims_that_are_not_corrected_for_their_number_or_for_what_is_beside():
    """Two claims of Summation on six bases, 1/64 each, and Comma_2-latest beside both."""
    rows = [row(method, {5: 1.0, 6: far}, base, task="summation")
            for base in range(6) for method, far in (
                ("Comma_2", 1.0), ("8_2", 1.0), ("Start_2", 0.5), ("Comma_2-latest", 1.0))]
    found = claims.differences([only(rows)])
    assert [each.methods[0] for each in found] == ["Comma_2", "8_2", "Comma_2-latest"]
    judged = claims.verdicts(found)
    assert [each.methods[0] for each in judged] == ["Comma_2", "8_2"]
    assert list(judged.values()) == [(2 / 64, "reproduced")] * 2
    table = tables.claims_table([only(rows)]).splitlines()
    same = "+0.50 (+0.50 ... +0.50) | +0.50 (+0.50 ... +0.50) | 6/6 |"
    assert table[2] == ("| Summation, exact, 6 variables (tuned on 5) | `Comma_2` 1.00, 1.00 "
                        f"| `Start_2` 1.00, 0.50 | {same} 0.031 | reproduced |")
    assert table[4] == (f"|  | `Comma_2-latest` 1.00, 1.00 | `Start_2` 1.00, 0.50 | {same}  "
                        "| beside |")
    assert tables.summary_table([only(rows)]).splitlines()[2] == (
        "| Summation, exact | 5 | 6 variables | `Comma_2` 1.00 ± 0.00, `8_2` 1.00 ± 0.00 "
        "| `Start_2` 0.50 ± 0.00, `End_2`  | reproduced against `Start_2` |")


def test_a_new_task_that_needs_an_edit(monkeypatch):
    class Echo(Generation):
        length_name, claim = "{} words", Claim(("Comma_4",), ("End_4",), ("exact",))

    monkeypatch.setitem(TASKS, "echo", Echo())
    rows = [row(method, {5: 1.0, 6: 1.0}, base, task="echo-3")
            for method in ("Comma_4", "End_4") for base in (0, 1)]
    table = tables.claims_table([only(rows)])
    assert "| Echo-3, exact, 6 words (tuned on 5) | `Comma_4` 1.00, 1.00 |" in table
    unheard = only([row("8_2", {6: 0.25}, task="unheard")])
    assert tables.methods_table(unheard).endswith("| `8_2` | 1 | 512 | 24 | 0.25 | 0.50 |\n")
    assert tables.claims_table([unheard]) == ""


def test_docs_or_figures_of_the_readme_that_are_made_of_other_rows():
    assert results.fill(PAGE) == PAGE and PAGE.count("<!--end-->") == 2
    confirmed = results.confirmed(beside=False)
    more = read([ROOT / "docs" / "results" / name for name in ("more.jsonl", "controls.jsonl")])
    assert results.drawn() == {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.svg")}
    assert f"\n\n{tables.summary_table(confirmed)}\n" in README
    values = [split_means(row, "accuracy")["ID"] for row in more
              if (row["task"], row["method"]) == ("generation", "Start_4:Comma_4")]
    assert f"{min(values):.2f}-{max(values):.2f} ID ({len(values)} bases)" in README
