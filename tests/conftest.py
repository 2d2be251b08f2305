from pathlib import Path
import shutil

import pytest
import torch

from latent_tokens import LatentTokens, Placement
from model import GPT, GPTConfig
import tasks
from tasks import ALPHABET, TASKS
import train

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another

TINY_TUNE = {"steps": 2, "batch_size": 4, "warmup": 1, "validation_examples": 8,
             "test_examples": 4}


def of_the_page() -> dict[str, tasks.Task]:
    """The code of docs/add_a_task.md, as it stands there: all tasks, and one more."""
    page = Path(train.__file__).parent / "docs" / "add_a_task.md"
    scope = dict(vars(tasks))
    exec(page.read_text().split("```python\n")[1].split("```")[0], scope)
    return scope["TASKS"]


EVERY_TASK = of_the_page() | TASKS
each_task = pytest.mark.parametrize("task", EVERY_TASK.values(), ids=EVERY_TASK)


@pytest.fixture
def model() -> GPT:
    """A tiny frozen GPT with random weights everywhere (a fresh one starts with zeroed outputs)."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), block_size=64, n_layer=2, n_head=2, n_embd=16))
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for table in gpt.embeddings:
        table.weight.data[-1] = 0.0  # stands for no token
    return gpt.requires_grad_(False).eval()


def run(out: Path, *arguments: str) -> list[dict]:
    """The results of a small run."""
    train.main(["--fast", "--device", "cpu", "--out", str(out), *arguments])
    return train.read_results(out / train.RESULTS)


def refused(capsys, command, *arguments: str | Path) -> str:
    """The one line that a command prints before it stops with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


def some_latents(notation: str, *separators) -> LatentTokens:
    """Random ones, for this model."""
    latents = LatentTokens(Placement.parse(notation, *separators), 16)
    torch.nn.init.normal_(latents.vectors, generator=torch.Generator().manual_seed(2))
    return latents


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let --fast be over in a second: the command line, the files and the flow stay the same."""
    model = GPTConfig(vocab_size=len(ALPHABET), n_layer=1, n_head=2, n_embd=16)
    patch.setattr(train, "FAST_PRETRAIN", {"steps": 2, "warmup": 1})
    patch.setattr(train, "FAST_TUNE", TINY_TUNE)
    for task in EVERY_TASK.values():
        first, tested = task.id_lengths[0], [1, 2, 4][-len(task.test_lengths):]
        for name, value in {
                "id_lengths": range(first, first + 2), "ood_lengths": range(first + 2, first + 5),
                "far_lengths": range(first + 3, first + 5),
                "test_lengths": tuple(first + length for length in tested),
                "pretraining": {"short": (1, 60), "long": (1, 100), "model": model}}.items():
            patch.setattr(type(task), name, value)  # and so in variants, too


@pytest.fixture
def tiny(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        run(folder, "--methods", "Start_2", "Comma_1", "Start_1+Comma_1")
    return folder


@pytest.fixture
def finished(tiny, made_once, tmp_path) -> Path:
    """A finished run of Generation with Start_2, Comma_1 and Start_1+Comma_1: a copy to spoil."""
    return shutil.copytree(made_once, tmp_path / "finished")
