import pytest
import torch

from model import GPT, GPTConfig
from tasks import ALPHABET


@pytest.fixture
def model() -> GPT:
    """A tiny frozen GPT with random weights everywhere (a fresh one starts with zeroed outputs)."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=len(ALPHABET), context=64, layers=2, heads=2, width=16))
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for table in gpt.embeddings:
        table.weight.data[-1] = 0.0  # "nothing there"
    return gpt.requires_grad_(False).eval()
