"""What goes wrong around a run: nothing is lost in silence, and every fault is one clear line."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import torch

from extras import controls, optimizers
from latent_tokens import LatentTokens, generate
from model import GPT
from tasks import encode
import train

pytestmark = pytest.mark.usefixtures("tiny")
ROOT = Path(train.__file__).parent


def run(out: Path, *arguments: str) -> None:
    train.main(["--fast", "--device", "cpu", "--out", str(out), "--methods", "Start_2", *arguments])


def refusal(capsys, command) -> str:
    """The one line of a command that stops with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().split("\r")[-1].splitlines()[-1].strip()
    assert "error: " in last
    return last


def results(out: Path) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "results.json").read_text(), parse_constant=refuse)


def methods(out: Path) -> set[str]:
    return {row["method"] for row in results(out)["rows"]}


# ------------------------------------------------------------------------ two writers

HOLDER = """
import sys
from pathlib import Path
from train import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_in_a_folder_is_refused(tmp_path, capsys):
    """Bug caught: rows of one command lost to another; a lock that outlives a killed process."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert "another command is writing to" in refusal(capsys, lambda: run(tmp_path))
    assert not (tmp_path / "results.json").exists()
    holder.kill()
    holder.communicate()
    run(tmp_path)
    assert "Start_2" in methods(tmp_path)


@pytest.mark.parametrize("command", [controls, optimizers])
def test_extras_respect_the_lock(command, finished, capsys):
    """Bug caught: rows of a run lost to the controls that are added to it."""
    with train.only_writer(finished):
        line = refusal(capsys, lambda: command.main([str(finished)]))
    assert "another command is writing to" in line


def test_temporary_names_are_a_process_own(tmp_path, monkeypatch):
    """Bug caught: two processes that write one temporary file."""
    names = set()
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda: process)
        train.write(tmp_path / "file", lambda path: (names.add(path), path.write_text("x")))
    assert len(names) == 2 and [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------ numbers that are none

def test_a_tuning_that_diverges_is_named_and_the_rest_kept(tmp_path, monkeypatch, capsys):
    """Bug caught: NaN reported as a result, or one bad method that ends the run."""
    tune = train.tune

    def diverging(base, task, method, *arguments):
        model, latents = tune(base, task, method, *arguments)
        if str(method) == "Start_2":
            latents.vectors.data.fill_(float("nan"))
        return model, latents

    monkeypatch.setattr(train, "tune", diverging)
    line = refusal(capsys, lambda: run(tmp_path, "End_2"))
    assert "generation, Start_2, seed 0: no trial ended with a finite loss" in line
    assert methods(tmp_path) == {"base", "instruction", "reminders", "End_2"}
    assert not list((tmp_path / "latents").glob("*Start_2*"))


def test_a_trial_that_diverges_is_not_chosen(tmp_path, monkeypatch):
    """Bug caught: NaN, which is smaller than nothing and larger than nothing, as the best loss."""
    monkeypatch.setattr(train, "FAST_TUNE", train.FAST_TUNE | {
        "trials": ((1e30, 0.05), (1.0, 0.05))})
    run(tmp_path)
    tuning = results(tmp_path)["tuning"][0]
    assert tuning["lr"] == 1.0 and tuning["trials"][0]["validation_loss"] is None


def test_a_base_that_diverges_is_not_saved(tmp_path, monkeypatch, capsys):
    """Bug caught: tuning on weights that are no numbers."""
    monkeypatch.setattr(train, "FAST_PRETRAIN", train.FAST_PRETRAIN | {"adam_lr": float("inf")})
    assert "the loss of step 1 is nan: lower the rates" in refusal(capsys, lambda: run(tmp_path))
    assert not list(tmp_path.glob("*.pt"))


# ------------------------------------------------------------------------ files that do not belong

def edit_base(out: Path, change) -> None:
    path = out / "generation-base0.pt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


def test_rows_belong_to_their_base(finished, capsys):
    """Bug caught: rows of two bases in one table."""
    edit_base(finished, lambda saved: saved["model"]["blocks.0.qkv.weight"].add_(1e-3))
    before = results(finished)
    line = refusal(capsys, lambda: run(finished, "End_2"))
    assert "were made with another generation-base0.pt" in line
    assert "were made with another" in refusal(capsys, lambda: controls.main([str(finished)]))
    assert results(finished) == before


def test_controls_refuse_a_base_that_the_run_has_not_finished(finished, capsys):
    """Bug caught: latents tuned after all on a base that train.py refused."""
    shutil.copy(finished / "generation-base0.pt", finished / "generation-base7.pt")
    before = results(finished)
    line = refusal(capsys, lambda: controls.main([str(finished), "--base", "7"]))
    assert "generation-base7.pt has no rows in this run" in line
    assert results(finished) == before


@pytest.mark.parametrize("change", [
    lambda saved: saved.update(step="2"), lambda saved: saved.update(step=-1),
    lambda saved: saved.update(skill="1"), lambda saved: saved.update(skill=2.0),
    lambda saved: saved.update(model=[]), lambda saved: saved.update(optimizers=None),
    lambda saved: saved["model"]["head.weight"].fill_(float("nan"))])
def test_a_base_with_wrong_inner_types_is_refused(change, finished, capsys):
    """Bug caught: a traceback from the middle of pre-training."""
    edit_base(finished, change)
    assert "is not a readable base" in refusal(capsys, lambda: run(finished))


@pytest.mark.parametrize("change, named", [
    (lambda saved: saved["rows"].pop(3), "length"),
    (lambda saved: saved["rows"].extend([row | {"seed": 1} for row in saved["rows"][1:]]),
     "length"),
    (lambda saved: saved["rows"][0].update(accuracy="1.0"), "accuracy"),
    (lambda saved: saved["rows"].append("a row"), ""),
    (lambda saved: saved.update(rows={}, tuning=3), "")])
def test_edited_results_are_refused(change, named, finished, capsys):
    """Bug caught: a row removed by hand that is silently averaged over."""
    saved = results(finished)
    change(saved)
    (finished / "results.json").write_text(json.dumps(saved))
    line = refusal(capsys, lambda: run(finished))
    assert "is not a readable file of results" in line and named in line


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("damaged")])
def test_lost_latents_are_tuned_anew_for_their_controls(damage, finished, monkeypatch):
    """Bug caught: a lost file that blocks its controls, since its row counts as finished."""
    monkeypatch.setattr(controls, "TUNED", {})
    monkeypatch.setattr(controls, "METHODS", {})
    monkeypatch.setattr(controls, "ALTERED", {"generation": ["Start_2:random"]})
    path = finished / "latents" / "generation-base0-Start_2-seed0.pt"
    before = LatentTokens.load(path, 16)
    damage(path)
    controls.main([str(finished)])
    assert torch.equal(before.vectors, LatentTokens.load(path, 16).vectors)
    assert "Start_2:random" in methods(finished)


# ------------------------------------------------------------------------ disks

@pytest.mark.parametrize("error", [RuntimeError("disk full\nC++ frames"), OSError("disk full")])
def test_a_full_disk_keeps_earlier_rows_and_leaves_nothing(error, finished, monkeypatch, capsys):
    """Bug caught: a traceback of sixty lines, and half a file on a full disk."""
    before = results(finished)

    def full(content, path):
        Path(path).write_text("half of")
        raise error

    monkeypatch.setattr(torch, "save", full)
    line = refusal(capsys, lambda: run(finished, "End_2"))
    assert "cannot write" in line and line.endswith("disk full")
    assert results(finished)["rows"][:len(before["rows"])] == before["rows"]
    assert not list(finished.rglob("*.partial"))


@pytest.mark.parametrize("closed", [".", "latents"])
def test_a_closed_folder_is_found_before_the_work(closed, tmp_path, monkeypatch, capsys):
    """Bug caught: latents/ found unwritable only after tuning."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / closed)
    assert "no permission to write" in refusal(capsys, lambda: run(tmp_path))
    assert not list(tmp_path.glob("*.pt"))


def test_a_name_too_long_for_the_disk(tmp_path, capsys):
    """Bug caught: a traceback after minutes of tuning, or an error while cleaning up."""
    with pytest.raises(train.UserError, match="cannot write"):
        train.write(tmp_path / ("x" * 250), lambda path: path.write_text("x"))


# ------------------------------------------------------------------------ terminals and places

def test_a_report_on_an_ascii_terminal(tmp_path):
    """Bug caught: the sign for the sd, which kills the table."""
    run(tmp_path, "--seeds", "2")
    shown = subprocess.run([sys.executable, "-m", "extras.report", str(tmp_path)], cwd=ROOT,
                           env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
                           capture_output=True, text=True)
    assert shown.returncode == 0 and "+/-" in shown.stdout


def test_the_tests_start_from_anywhere(tmp_path):
    """Those of the report do, soonest: without PyTorch. Bug caught: No module named 'extras'."""
    shown = subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", "--noconftest",
                            str(ROOT / "tests" / "test_report.py")],
                           cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout


def test_a_mistyped_folder_is_not_made(tmp_path, capsys):
    """Bug caught: an empty run where somebody mistyped a name."""
    line = refusal(capsys, lambda: controls.main([str(tmp_path / "typo")]))
    assert "does not hold a run" in line and not (tmp_path / "typo").exists()


def test_a_base_and_latents_load_in_a_users_script(finished):
    """Bug caught: files that only train.py can read."""
    base = GPT.load(finished / "generation-base0.pt")
    latents = LatentTokens.load(finished / "latents" / "generation-base0-Start_2-seed0.pt",
                                base.config.n_embd)
    assert len(generate(base, latents, [encode("44@47=83,")], 5)[0]) == 5
    with pytest.raises(ValueError, match="is not a readable base"):
        GPT.load(finished / "results.json")
