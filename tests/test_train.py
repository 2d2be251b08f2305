"""The script as a user meets it: whole small runs, interruptions, mistakes on the command line."""

import json

import pytest
import torch

from latent_tokens import LatentTokens, Placement
from model import GPT, GPTConfig, PretrainConfig
import model as model_module
from tasks import TASKS, pretraining_batches, random_source
import train

TINY = GPTConfig(context=352, layers=1, heads=2, width=16)
FILES = {"base.pt", "config.json", "latents", "results.json"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Let --fast be over in a second: the command line, the files and the flow stay the same."""
    monkeypatch.setattr(train, "FAST_PRETRAIN", {"steps": 2, "rows": 2, "warmup": 1, "model": TINY})
    monkeypatch.setattr(train, "FAST_TUNE", {"steps": 2, "rows": 4, "warmup": 1,
                                             "validation_rows": 8, "test_rows": 4})


def run(out, *arguments):
    train.main(["--fast", "--device", "cpu", "--lengths", "3", "17", "--out", str(out), *arguments])
    return json.loads((out / "results.json").read_text())


def refusal(capsys, *arguments) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def small_pretraining(path, steps=60) -> GPT:
    config = PretrainConfig(steps=steps, rows=2, model=TINY)
    batches = pretraining_batches(config.shares, random_source("pretrain", 0), 2, TINY.context)
    return model_module.pretrain(config, batches, path, "cpu")


@pytest.mark.parametrize("task", TASKS)
def test_a_whole_run(task, tmp_path, capsys):
    """Bug caught: a task, a report or a file that is missing at the end."""
    results = run(tmp_path, "--task", task, "--seeds", "2")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(list((tmp_path / "latents").iterdir())) == 2 * len(TASKS[task].methods)
    assert results["config"] == json.loads((tmp_path / "config.json").read_text())
    assert {"torch", "device", "threads", "seconds"} <= results["environment"].keys()
    methods = ["base", "instruction", "reminders", *TASKS[task].methods]
    lengths = range(1, 18) if task == "generation" else [3, 17]
    expected = {(task, method, seed, length)
                for method in methods for seed in (0, 1) for length in lengths}
    keys = ("task", "method", "seed", "length")
    assert {tuple(row[key] for key in keys) for row in results["rows"]} == expected
    trained = {row["method"]: row["trainable_parameters"] for row in results["rows"]}
    assert len({trained[method] for method in TASKS[task].methods}) == 1  # no tilting
    for row in results["rows"]:
        splits = {"id": TASKS[task].id_lengths, "ood": TASKS[task].ood_lengths}
        assert row["split"] in splits or row["length"] == 3  # a sum of 3 variables is neither
        assert all((row["split"] == name) == (row["length"] in splits[name]) for name in splits)
        assert 0.0 <= row["exact"] <= row["accuracy"] <= 1.0
        assert (row["trainable_parameters"] == 0) == (row["method"] in train.REFERENCES)
    printed = capsys.readouterr().out
    assert printed.count(" on ") >= 3 and "mean nothing" in printed
    assert all(f"| `{method}` | 2 |" in printed for method in methods)
    assert f"OOD {'6-17' if task == 'generation' else '17'} |" in printed  # what was tested
    assert all(f"| `{method}` - `{baseline}` |" in printed
               for method in TASKS[task].claimed for baseline in TASKS[task].baselines)


def test_a_second_run_reuses_everything_and_can_add_to_it(tmp_path):
    """Bug caught: work done twice, or rows lost when another method is added."""
    first = run(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    assert run(tmp_path)["rows"] == first["rows"]
    more = run(tmp_path, "--methods", "8_2", "8_2-own", "--own-positions")
    assert more["rows"][:len(first["rows"])] == first["rows"]
    assert {row["method"] for row in more["rows"][len(first["rows"]):]} == {"8_2-own"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_same_seed_same_result(tmp_path):
    """Bug caught: draws or initial values that no seed rules."""
    assert run(tmp_path / "a")["rows"] == run(tmp_path / "b")["rows"]
    for name in ("Start_4", "Comma_4"):
        one, two = (LatentTokens.load(tmp_path / folder / f"latents/generation-{name}-seed0.pt", 16)
                    for folder in "ab")
        assert torch.equal(one.vectors, two.vectors)


def test_tuning_leaves_the_base_bit_identical(tmp_path):
    """Bug caught: an optimiser or a gradient that reaches the frozen base."""
    base = small_pretraining(tmp_path / "base.pt", steps=2)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = train.TuneConfig(steps=3, rows=4, lrs=(0.5, 2.0), validation_rows=5)
    for seed in (0, 1):
        model, latents, chosen = train.tune_best(base, TASKS["generation"], "Comma_2", seed, config)
        assert model is base
        assert chosen["lr"] == min(chosen["validation_loss"], key=chosen["validation_loss"].get)
        start = LatentTokens(Placement.parse("Comma_2"), 16)
        start.initialise(base.token_embedding, torch.Generator().manual_seed(seed))
        assert not torch.isclose(latents.vectors, start.vectors).all(dim=1).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_full_tuning_changes_a_copy(tmp_path):
    """Bug caught: fine-tuning that spoils the base for every method after it."""
    base = small_pretraining(tmp_path / "base.pt", steps=2)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model, latents, _ = train.tune_best(base, TASKS["generation"], "full", 0,
                                        train.TuneConfig(steps=2, rows=4, validation_rows=5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert not any(torch.equal(mine, theirs) for mine, theirs
                   in zip(model.blocks.parameters(), base.blocks.parameters()) if mine.ndim == 2)
    assert latents.placement.total == 0


def test_controls_alter_nothing_but_what_they_say():
    """Bug caught: a control that tests the tuned latents after all, or other placements."""
    latents = LatentTokens(Placement.parse("Start_1+Comma_2"), 4)
    torch.nn.init.normal_(latents.vectors)
    tuned = latents.vectors.detach().clone()
    swapped = train.altered(latents, "shuffled", seed=0)
    assert torch.equal(swapped.vectors, tuned[[2, 0, 1]])
    removed = train.altered(latents, "removed", seed=0)
    assert str(removed.placement) == "Start_1" and torch.equal(removed.vectors, tuned[:1])
    drawn = train.altered(latents, "random", seed=0)
    assert torch.allclose(drawn.vectors.norm(dim=1), tuned.norm(dim=1))
    assert not torch.isclose(drawn.vectors, tuned).any()
    assert drawn.placement == swapped.placement == latents.placement
    assert torch.equal(latents.vectors, tuned)
    assert swapped.vectors.requires_grad and not drawn.vectors.requires_grad  # trained, or not


def test_all_controls_of_a_task(tmp_path, capsys):
    """Bug caught: a control without rows; removed latents that differ from the base; skills tested
    on the tuned task alone."""
    task = TASKS["generation"]
    rows = run(tmp_path, "--methods", "Comma_4:removed", "--controls")["rows"]
    by_method = {(row["task"], row["method"], row["length"]): row for row in rows}
    methods = {method for task, method, _ in by_method if task == "generation"}
    assert methods == {*train.REFERENCES, "Comma_4", "Comma_4:removed", *task.controls}
    for length in range(1, 18):
        removed, base = (by_method["generation", method, length]
                         for method in ("Comma_4:removed", "base"))
        assert {**removed, "method": "base"} == base
    for other in ("repetition", "summation"):
        assert (other, "instruction, after full on generation",
                TASKS[other].test_lengths[-1]) in by_method
    capsys.readouterr()
    train.main(["--table", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(f"| `{method}` | 1 |" in printed for method in methods)
    assert printed.count("| seeds | trained |") == 3


def test_interrupted_pretraining_goes_on_where_it_stood(tmp_path, monkeypatch):
    """Bug caught: a resumed base that saw other text, rates or momenta than an unstopped one."""
    whole = small_pretraining(tmp_path / "whole.pt")
    calls, loss = [], model_module.F.cross_entropy

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 55:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model_module.F, "cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_pretraining(tmp_path / "resumed.pt")
    resumed = small_pretraining(tmp_path / "resumed.pt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_interrupted_tuning_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    """Bug caught: Ctrl-C in the second method that costs the first."""
    tune = train.tune

    def interrupted(base, task, method, *rest):
        if method == "End_4":
            raise KeyboardInterrupt
        return tune(base, task, method, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "tune", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path)
    assert stop.value.code == 130
    assert "same command goes on" in capsys.readouterr().err
    kept = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["method"] for row in kept} == {"base", "instruction", "reminders", "Start_4"}
    assert run(tmp_path)["rows"][:len(kept)] == kept


@pytest.mark.parametrize("arguments, message", [
    (["--methods", "Comma_0"], "unknown placement 'Comma_0': expected Start_m, End_m, Comma_m"),
    (["--methods", "Start_2", "Middle_2"], "unknown placement 'Middle_2'"),
    (["--task", "division"], "choose from"),
    (["--lengths", "60"], "length 60 of generation does not fit"),
    (["--device", "abacus"], "--device: invalid choice: 'abacus' (choose from "),
    (["--steps", "0"], "--steps must be 1 or more"),
    (["--steps", "many"], "invalid int value: 'many'"),
    (["--lr", "-1"], "--lr must be above 0"),
    (["--methods", "Comma_4:doubled"], "unknown control 'doubled' of Comma_4: choose from random"),
    (["--methods", "Comma_6-own"], "Comma_6-own needs 375 positions at length 24"),
    (["--table"], "results.json"),
    (["--unknown"], "unrecognized arguments"),
])
def test_mistakes_get_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    """Bug caught: a typing error found out after seven minutes of pre-training."""
    assert message in refusal(capsys, "--out", str(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


def test_paths_that_cannot_be_written_are_refused(tmp_path, capsys):
    """Bug caught: an --out found unusable only when there is something to save."""
    (tmp_path / "file").write_text("not a folder")
    assert "file" in refusal(capsys, "--fast", "--out", str(tmp_path / "file"))
    assert "file" in refusal(capsys, "--fast", "--out", str(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_other_settings_do_not_overwrite_a_run(tmp_path, capsys):
    """Bug caught: seven minutes of pre-training lost to a forgotten --out."""
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for other, named in ((["--lr", "0.5"], "tune.lrs = [1.0, 2.0]"),
                         (["--steps", "7"], "tune.steps = 2, this run wants 7"),
                         (["--lengths", "4"], "lengths = [3, 17], this run wants [4]")):
        line = refusal(capsys, "--fast", "--out", str(tmp_path), "--lengths", "17", "3", *other)
        assert f"was made with {named}" in line and "choose another --out" in line
    (tmp_path / "results.json").rename(tmp_path / "kept")
    line = refusal(capsys, "--fast", "--lengths", "3", "17", "--pretrain-seed", "5",
                   "--out", str(tmp_path))
    assert "base.pt was made with seed = 0, this run wants 5" in line
    (tmp_path / "kept").rename(tmp_path / "results.json")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_a_base_is_not_reused_for_another_text(tmp_path, monkeypatch, capsys):
    """Bug caught: an edited ``document`` (the README's first exercise) that changes nothing."""
    run(tmp_path)
    monkeypatch.setattr(type(TASKS["repetition"]), "document", lambda task, rng: "Rs0:4@7=2*00;")
    line = refusal(capsys, "--fast", "--lengths", "3", "17", "--out", str(tmp_path))
    assert "base.pt was made with checksum of the text = " in line
    assert "choose another --out" in line


@pytest.mark.parametrize("name", ["base.pt", "results.json"])
def test_damaged_files_are_refused(name, tmp_path, capsys):
    """Bug caught: a damaged file that ends in a traceback, or is overwritten."""
    run(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    assert f"{name} is not a readable" in refusal(
        capsys, "--fast", "--lengths", "3", "17", "--out", str(tmp_path))
    assert (tmp_path / name).stat().st_size == 100


def rows_of(method: str, accuracies: list[tuple[int, int, float]]) -> list[dict]:
    """Rows of results from (seed, length, accuracy)."""
    return [{"task": "generation", "method": method, "seed": seed, "length": length,
             "accuracy": accuracy, "exact": 0.5, "latents_inserted": 4 * length,
             "trainable_parameters": 512} for seed, length, accuracy in accuracies]


def test_the_table_averages_over_lengths_and_seeds():
    """The hand-worked table. Bug caught: sd over lengths in place of seeds, or splits mixed up."""
    rows = rows_of("Comma_4", [(0, 5, 1.0), (0, 6, 0.8), (0, 16, 0.4),
                               (1, 5, 1.0), (1, 6, 1.0), (1, 16, 0.4)])
    assert train.table(rows).splitlines()[-1] == (
        "| `Comma_4` | 2 | 512 | 64 | 1.00 ± 0.00 | 0.65 ± 0.07 | 0.40 ± 0.00 "
        "| 0.50 ± 0.00 | 0.50 ± 0.00 | 0.50 ± 0.00 |")


def test_differences_are_paired_by_seed():
    """The hand-worked interval. Bug caught: seeds compared with other seeds, ID lengths counted, an
    interval of the single methods in place of their differences."""
    rows = [*rows_of("Comma_4", [(0, 5, 0.0), (0, 16, 1.0), (1, 16, 0.9), (2, 16, 0.8)]),
            *rows_of("Start_4", [(0, 5, 1.0), (0, 16, 0.5), (1, 16, 0.4), (2, 16, 0.3)]),
            *rows_of("End_4", [(0, 16, 0.8), (1, 16, 0.8)])]
    assert train.differences(rows).splitlines()[2:] == [
        "| `Comma_4` - `Start_4` | +0.50 | +0.50 to +0.50 | +125% |",
        # pairs 0.2 and 0.1: mean 0.15, sd 0.0707, half-width 12.706 * 0.0707 / sqrt(2) = 0.635
        "| `Comma_4` - `End_4` | +0.15 | -0.49 to +0.79 | +19% |"]
    assert train.differences(rows_of("Comma_4", [(0, 16, 1.0)])) == ""
    rows = [*rows_of("Comma_4", [(0, 16, 1.0), (1, 16, 1.0)]),
            *rows_of("Start_4", [(0, 16, 0.0), (1, 16, 0.0)])]
    assert train.differences(rows).endswith("| +1.00 | +1.00 to +1.00 | from zero |")


def test_lengths_outside_every_split(tmp_path, capsys):
    """Bug caught: a table without any column, or without some method's, that ends the run."""
    train.main(["--fast", "--device", "cpu", "--lengths", "3", "--task", "summation",
                "--methods", "full", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["split"] for row in rows if row["task"] == "summation"} == {"other"}
    assert "| `full` | 1 |" in capsys.readouterr().out
    run(tmp_path / "id", "--methods", "full")
