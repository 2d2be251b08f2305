"""docs/results.md agrees with the raw results, and the README with docs/results.md."""

from pathlib import Path
import re

from extras import results

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_of_the_raw_results():
    """Bug caught: a table that was edited by hand, or rows that changed under it."""
    made = results.page(ROOT / "docs" / "results")
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == made


def test_figures_of_the_readme_stand_in_a_table():
    """Bug caught: a figure that was copied wrongly, or that an older run gave."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Results"):readme.index("## The paper")]
    tables = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = re.findall(r"[-+]?\d\.\d\d(?: ± \d\.\d\d)?", section)
    assert figures
    assert [figure for figure in figures if figure not in tables] == []


def test_tables_of_the_readme_are_those_of_the_page():
    """Bug caught: a row with the figures of another, or one that is left out."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Results"):readme.index("## The paper")]
    tables = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(tables) == 2
    assert [table for table in tables if f"\n\n{table}\n" not in page] == []


def test_how_often_each_trial_was_chosen():
    """Bug caught: the trial with the best loss counted for the one that was tried first."""
    trials = [{"lr": 1.0, "weight_decay": 0.05}, {"lr": 2.0, "weight_decay": 0.05}]
    tunings = [{"task": "echo", "method": "Start_2", "trials": trials} | chosen
               for chosen in (trials[1], trials[1], trials[0])]
    assert results.chosen_table("echo", tunings).splitlines()[-1] == "| `Start_2` | 1 | 2 |"


def test_each_base_has_its_column():
    """Bug caught: seeds of two bases in one mean."""
    rows = [{"task": "echo", "method": "Start_2", "base": base, "seed": seed, "length": 9,
             "split": "ood", "exact": exact, "accuracy": 1.0}
            for base, seed, exact in ((3, 0, 0.0), (3, 1, 0.5), (4, 0, 1.0))]
    assert results.base_table("echo", rows).splitlines()[-1] == "| `Start_2` | 0.25 | 1.00 |"


def test_a_line_of_the_dial():
    """Bug caught: settings out of order or in another's column, or equations before the 16th."""
    rows = [{"task": task, "method": "Comma_4", "base": base, "seed": 0, "length": length,
             "split": "ood", "exact": 0.0, "accuracy": accuracy}
            for task, base, length, accuracy in (
                ("generation", 15, 16, 0.75), ("generation-0.1", 150, 6, 0.0),
                ("generation-0.1", 150, 16, 0.5), ("generation-0.1", 151, 16, 1.0),
                ("generation-0", 150, 16, 0.25))]
    assert results.dial_table(rows).splitlines() == [
        "| Generation, accuracy far OOD; rules restated with | 0 | 0.1 | 0.5 |",
        "|---|---|---|---|",
        "| `Comma_4` | 0.25 | 0.75 ± 0.35 | 0.75 |"]
