"""docs/ready, the run that the repository holds, and who reads it."""

from dataclasses import asdict
from pathlib import Path
import shutil

import pytest

from extras import controls, report, show
from latent_tokens import LatentTokens
from model import GPT, weights_checksum
from tasks import TASKS, checksum, text_checksum
from tests.conftest import refused
import train

READY = Path(train.__file__).parent / "docs" / "ready"


def test_it_is_what_train_py_makes_now():
    """After a change of settings: python train.py --out docs/ready, in an empty folder."""
    task, rows = TASKS["generation"], train.read_results(READY / train.RESULTS)
    base = GPT.load(READY / "generation-base60.pt")
    config = asdict(train.PretrainConfig(**task.pretraining)) | {"text": text_checksum(task)}
    settings = {"task": task.name, "base": 60, "seed": 0, "tuning": asdict(train.TuneConfig()),
                "pretraining": config, "task_checksum": checksum(task),
                "base_checksum": weights_checksum(base)}
    methods = [*train.REFERENCES, *task.claim.baselines, *task.claim.proposed]
    assert base.notes["pretraining"] == config and len(base.notes["losses"]) > 1
    assert [train.key(row) for row in rows] == [
        train.key(settings | {"method": method}) for method in methods]
    for row in rows[len(train.REFERENCES):]:
        latents = LatentTokens.load(READY / row["latents"], base.config.n_embd)
        assert str(latents.placement) == row["method"]
        assert weights_checksum(latents) == row["vectors_checksum"]


@pytest.fixture
def newcomer(finished, tmp_path, monkeypatch):
    """Somebody who has trained nothing. (The run is a small one.)"""
    shutil.copytree(finished, tmp_path / "here" / "docs" / "ready")
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("command, arguments", [
    (show, ["--method", "Comma_1"]), (show, ["runs/default", "--method", "Comma_1"]),
    (report, []), (report, ["runs/default"])])
def test_it_stands_in_for_a_run_that_is_not_there_yet(command, arguments, newcomer, capsys):
    Path("runs/default").mkdir(parents=True)  # the main job has begun
    command.main(arguments)
    assert capsys.readouterr().err == "runs/default has no results yet: this reads docs/ready\n"
    Path("docs/ready").rename("elsewhere")
    shutil.copytree("elsewhere", "runs/default", dirs_exist_ok=True)
    command.main(arguments)
    assert not capsys.readouterr().err


def test_nothing_is_added_to_it(newcomer, capsys):
    with pytest.raises(SystemExit):
        controls.main([])
    assert "docs/ready is for reading: make a run of your own" in capsys.readouterr().err
    assert "make one with python train.py --out runs/default" in refused(
        capsys, show, "docs/ready", "--method", "End_9")
