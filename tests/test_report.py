"""The tables, worked by hand."""

import json
import sys
from types import SimpleNamespace

import pytest

from extras import claims, report


def rows_of(method: str, cells: list[tuple[int, int, int, float]], task="generation") -> list[dict]:
    """Rows of results from (base, seed, length, accuracy)."""
    return [{"task": task, "method": method, "base": base, "seed": seed, "length": length,
             "split": "id" if length < 6 else "ood", "accuracy": accuracy, "exact": 0.5,
             "latents_inserted": 4 * length, "trainable_parameters": 512}
            for base, seed, length, accuracy in cells]


def test_a_cell_is_a_mean_over_lengths_and_its_sd_over_seeds():
    """Bug caught: sd over lengths in place of seeds, or splits mixed up."""
    rows = rows_of("Comma_4", [(0, 0, 5, 1.0), (0, 0, 6, 0.8), (0, 0, 16, 0.4),
                               (0, 1, 5, 1.0), (0, 1, 6, 1.0), (0, 1, 16, 0.4)])
    assert report.table("generation", rows).splitlines()[-1] == (
        "| `Comma_4` | 2 | 512 | 64 | 1.00 ± 0.00 | 0.65 ± 0.07 | 0.40 ± 0.00 "
        "| 0.50 ± 0.00 | 0.50 ± 0.00 | 0.50 ± 0.00 |")


def test_several_bases_are_the_observations():
    """Two seeds on base 0 (mean 0.5), one on base 1 (0.7). Bug caught: seeds of one base counted
    as if they were bases."""
    rows = rows_of("Comma_4", [(0, 0, 16, 0.4), (0, 1, 16, 0.6), (1, 0, 16, 0.7)])
    values = claims.by_base(claims.observations(rows, "Comma_4", "accuracy", [16]))
    assert values == pytest.approx([0.5, 0.7])


def test_differences_are_paired():
    """Pairs 0.2 and 0.1: mean 0.15, sd 0.0707, half-width 12.706 * 0.0707 / sqrt(2) = 0.635. Bug
    caught: seeds compared with other seeds, or an interval of the single methods."""
    rows = [*rows_of("Comma_4", [(0, 0, 16, 1.0), (0, 1, 16, 0.9), (0, 2, 16, 0.0)]),
            *rows_of("End_4", [(0, 0, 16, 0.8), (0, 1, 16, 0.8)])]
    assert report.claim_table("generation", rows).splitlines()[2] == (
        "| `Comma_4` - `End_4` | +0.15 | -0.49 to +0.79 | 2 of 2 | +19% | ordering only |")


def test_a_claim_is_about_its_own_lengths():
    """Bug caught: in-distribution lengths that dilute a difference far out."""
    rows = [*rows_of("Comma_4", [(0, 0, 5, 0.0), (0, 0, 16, 1.0), (0, 1, 5, 0.0), (0, 1, 16, 1.0)]),
            *rows_of("Start_4", [(0, 0, 5, 1.0), (0, 0, 16, 0.5), (0, 1, 5, 1.0), (0, 1, 16, 0.5)])]
    assert claims.differences("generation", rows)[0].pairs == {(0, 0): 0.5, (0, 1): 0.5}


def test_a_baseline_at_zero_has_no_relative_gain():
    """Bug caught: a division by zero."""
    rows = [*rows_of("Comma_4", [(0, 0, 16, 1.0), (0, 1, 16, 1.0)]),
            *rows_of("Start_4", [(0, 0, 16, 0.0), (0, 1, 16, 0.0)])]
    assert "| from zero |" in report.claim_table("generation", rows)


def test_one_observation_has_no_interval():
    """Bug caught: an interval made of one number."""
    rows = [*rows_of("Comma_4", [(0, 0, 16, 1.0)]), *rows_of("Start_4", [(0, 0, 16, 0.5)])]
    assert report.claim_table("generation", rows) == ""


def difference(*values: float) -> claims.Difference:
    """Two seeds on each base."""
    pairs = {(index // 2, index % 2): value for index, value in enumerate(values)}
    return claims.Difference("Comma_4", "Start_4", pairs, baseline=0.5)


@pytest.mark.parametrize("values, verdict", [
    ((0.4, 0.5) * 5, "reproduced"),
    ((0.4, 0.5) * 4 + (0.4, -0.1), "reproduced"),
    ((0.4, 0.5) * 4 + (-0.1, -0.1), "ordering only"),  # eight pairs of ten
    ((0.9, 0.9) + (0.01, 0.01) * 4, "ordering only"),  # one base makes the mean
    ((0.4, 0.5, 0.4), "reproduced"),
    ((-0.1, 0.0) * 5, "not reproduced")])
def test_the_verdicts(values, verdict):
    """Bug caught: a verdict kinder than its definition."""
    assert difference(*values).verdict == verdict


def test_one_base_never_reproduces():
    """Bug caught: seeds of one base that pass for bases."""
    assert difference(0.5, 0.5).verdict == "ordering only"


def test_an_interval_stays_possible():
    """Bug caught: a difference of two shares beyond 1."""
    assert claims.interval([0.99, 0.5]) == (-1.0, 1.0)


def test_every_pair_is_a_dot():
    """0 is the column of the |. Bug caught: a pair that is left out, or a scale that is off."""
    marks = difference(0.0, 0.02, 0.02, 1.0, 1.0, 1.0, -0.7).dots()[27:]
    assert marks == "." + " " * 9 + ".:" + " " * 48 + "3"


def test_several_files_are_one(tmp_path, capsys):
    """Bug caught: a second file that is left out."""
    for base in (0, 1):
        rows = rows_of("Comma_4", [(base, 0, 16, 1.0)])
        (tmp_path / f"{base}.json").write_text(json.dumps({"rows": rows}))
    report.main([str(tmp_path / "0.json"), str(tmp_path / "1.json")])
    assert "| `Comma_4` | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize("encoding, shown", [
    ("utf-8", "±░"), ("cp437", "±░"), ("latin-1", "±"), ("ascii", ""), (None, "")])
def test_what_a_terminal_can_show(encoding, shown, monkeypatch):
    """Bug caught: UnicodeEncodeError at the end of a run, in a pipe or on an old console."""
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding=encoding))
    assert "".join(character for character in "±░" if report.encodes(character)) == shown


def test_a_new_task_has_a_table(tmp_path, capsys):
    """Bug caught: a report that knows three tasks only."""
    rows = rows_of("Comma_4", [(0, 0, 3, 1.0), (0, 0, 6, 0.5)], task="echo")
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    report.main([str(tmp_path)])
    assert "| echo | runs |" in capsys.readouterr().out


def test_a_file_that_is_no_result_is_refused(tmp_path, capsys):
    """Bug caught: a traceback for a wrong path."""
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "is not a readable file of results" in capsys.readouterr().err
