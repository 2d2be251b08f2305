"""docs/results.md from docs/results/: a section for each folder of raw results.

    python -m extras.results

A folder holds ``about.md``, written by hand (title, command, machine, minutes), and the
``results.json`` of its runs. All below the text of ``about.md`` is made here, and a test compares.
"""

from collections import Counter
from pathlib import Path
from statistics import fmean

from extras.claims import (by_base, claim_of, differences, interval, observations, read, span,
                           splits_of)
from extras.curves import dial_values
from extras.report import mean_and_sd, sections

DOCS = Path(__file__).parent.parent / "docs"
INTRODUCTION = """# All results

Made by `python -m extras.results` from the raw rows in `docs/results/`; do not edit. Cells are
means ± sd over bases; `extras/report.py` says how they are made. *Inserted* counts the latents of
a training example. Decoding ends with the last token, so it never feeds a group before that one:
of `Comma_4` in Generation it feeds 96 of 100.
"""
COUNTED = {"generation": "equations {}", "repetition": "n = {}", "summation": "{} variables"}


def overview(rows: list[dict]) -> str:
    """The claims of all tasks in one table, which the README has, too."""
    lines = ["| claim | ours | baseline | difference | 95 % interval | above zero | verdict |",
             "|---" * 7 + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        claim, splits = claim_of(task), splits_of(task, mine)
        lengths = splits[claim.split]
        name = (f"{task.capitalize()}, {claim.metrics[0]}, {COUNTED[task].format(span(lengths))} "
                f"(tuned on {span(splits['ID'])})")
        for each in differences(task, mine):
            ours, theirs = (
                mean_and_sd(by_base(observations(mine, method, claim.metrics[0], lengths)))
                for method in (each.ours, each.theirs))
            low, high = interval(each.values)
            lines.append(f"| {name} | `{each.ours}` {ours} | `{each.theirs}` {theirs} | "
                         f"{fmean(each.values):+.2f} | {low:+.2f} to {high:+.2f} | "
                         f"{each.above_zero} of {len(each.pairs)} | {each.verdict} |")
            name = ""
    return "\n".join(lines) + "\n"


def base_table(task: str, rows: list[dict]) -> str:
    """The metric of the claim on each base, as means over seeds."""
    metric, splits = claim_of(task).metrics[0], splits_of(task, rows)
    split = claim_of(task).split if claim_of(task).split in splits else "ID"
    bases = sorted({row["base"] for row in rows})
    lines = [f"| {metric} {split} {span(splits[split])}, by base | "
             + " | ".join(str(base) for base in bases) + " |", "|---" * (1 + len(bases)) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        values = observations(rows, method, metric, splits[split])
        cells = [[value for (number, _), value in values.items() if number == base]
                 for base in bases]
        lines.append(f"| `{method}` | "
                     + " | ".join(f"{fmean(cell):.2f}" if cell else "" for cell in cells) + " |")
    return "\n".join(lines)


def chosen_table(task: str, tunings: list[dict]) -> str:
    """How often validation chose each pair of learning rate and weight decay."""
    mine = [tuning for tuning in tunings if tuning["task"] == task]
    chosen = Counter((tuning["method"], tuning["lr"], tuning["weight_decay"]) for tuning in mine)
    pairs = sorted({(trial["lr"], trial["weight_decay"])
                    for tuning in mine for trial in tuning["trials"]})
    lines = [f"| {task}: chosen lr, weight decay | "
             + " | ".join(f"{lr:g}, {decay:g}" for lr, decay in pairs) + " |",
             "|---" * (1 + len(pairs)) + "|"]
    for method in dict.fromkeys(tuning["method"] for tuning in mine):
        counts = [str(chosen[method, *pair]) for pair in pairs]
        lines.append(f"| `{method}` | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def dial_table(rows: list[dict]) -> str:
    """Far OOD accuracy at each setting of the dial."""
    values = dial_values(rows)
    settings = sorted({setting for line in values.values() for setting in line})
    lines = ["| Generation, accuracy far OOD; rules restated with | "
             + " | ".join(f"{setting:g}" for setting in settings) + " |",
             "|---" * (1 + len(settings)) + "|"]
    lines += [f"| `{method}` | "
              + " | ".join(mean_and_sd(line.get(setting, [])) for setting in settings) + " |"
              for method, line in values.items()]
    return "\n".join(lines) + "\n"


def section(folder: Path) -> str:
    """The text of a folder and its tables."""
    results = [read(path) for path in sorted(folder.glob("*.json"))]
    rows = [row for each in results for row in each["rows"]]
    tunings = [tuning for each in results for tuning in each["tuning"]]
    parts = [(folder / "about.md").read_text(encoding="utf-8")]
    if folder.name == "dial":  # in this run, whose bases repeated no steps either, it stood at 0.5
        beside = [read(path)["rows"] for path in folder.parent.glob("earlier/generation-*.json")]
        parts.append(dial_table(sum(beside, rows)))
    tasks = dict.fromkeys(row["task"] for row in rows)
    for task, report in zip(tasks, sections(rows)):
        mine = [row for row in rows if row["task"] == task]
        parts += [f"### {task.capitalize()}\n", report, base_table(task, mine) + "\n",
                  chosen_table(task, tunings) + "\n"]
    return "\n".join(parts)


def page(folder: Path) -> str:
    """The whole page: the claims in one table, and the folders in the order of their names."""
    rows = sum((read(path)["rows"] for path in sorted(folder.glob("confirm/*.json"))), [])
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    return "\n".join([INTRODUCTION, overview(rows), *map(section, folders)])


def main() -> None:
    path = DOCS / "results.md"
    path.write_text(page(DOCS / "results"), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
