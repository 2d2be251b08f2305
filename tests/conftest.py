from pathlib import Path
import shutil

import pytest
import torch

from model import GPT, GPTConfig
from tasks import ALPHABET, TASKS
import train

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another


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


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let --fast be over in a second: the command line, the files and the flow stay the same."""
    model = GPTConfig(vocab_size=len(ALPHABET), n_layer=1, n_head=2, n_embd=16)
    patch.setattr(train, "FAST_PRETRAIN", {"steps": 2, "short": (1, 60), "long": (1, 100),
                                           "warmup": 1, "needed_skill": 0.0, "model": model})
    patch.setattr(train, "FAST_TUNE", {"steps": 2, "batch_size": 4, "warmup": 1,
                                       "validation_examples": 8, "test_examples": 4})
    splits = ("id_lengths", "ood_lengths", "far_lengths", "test_lengths")
    for name, lengths in {
            "generation": (range(1, 3), range(3, 6), range(4, 6), (5,)),
            "repetition": (range(1, 3), range(3, 6), range(5, 6), (2, 3, 5)),
            "summation": (range(5, 13), range(13, 27), range(20, 27), (5, 13, 20))}.items():
        for split, tested in zip(splits, lengths):
            patch.setattr(type(TASKS[name]), split, tested)  # and so in variants, too


@pytest.fixture
def tiny(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        train.main(["--fast", "--device", "cpu", "--out", str(folder),
                    "--methods", "Start_2", "Comma_1", "Start_1+Comma_1"])
    return folder


@pytest.fixture
def finished(tiny, made_once, tmp_path) -> Path:
    """A finished run of Generation with Start_2, Comma_1 and Start_1+Comma_1: a copy to spoil."""
    return shutil.copytree(made_once, tmp_path / "finished")
