"""docs/one_page.py against latent_tokens.py, which does the same in batches and with a cache."""

import random

import pytest
import torch

from docs import one_page
from latent_tokens import generate, make_batch, response_loss
from tasks import TASKS, decode, draw_examples, encode
from tests.conftest import some_latents

EXAMPLES = draw_examples(TASKS["generation"], [1, 3], "test", 0, 6)
LATENTS = some_latents("Comma_4").requires_grad_(False)


def test_the_same_loss(model):
    for each in EXAMPLES:
        batch = make_batch(LATENTS.placement, [encode(each.query)], [encode(each.response)])
        ours = response_loss(model, LATENTS, batch)
        theirs = one_page.loss(model, LATENTS.vectors, each)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_the_same_answers(model):
    rng = random.Random(0)
    queries = [each.query for each in EXAMPLES] + ["".join(rng.choices("12,", k=7)) for _ in "abc"]
    for query in queries:
        answer, = generate(model, LATENTS, [encode(query)], 25)
        assert one_page.answer(model, LATENTS.vectors, query, 25) == decode(answer)


def test_an_answer_before_the_loss_on_the_way_and_five_answers_after(finished, capsys):
    one_page.main(finished / "generation-base60.pt", steps=26)
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(" of 24 right") for line in lines] == [True, *[False] * 2, *[True] * 5]
    assert [line.partition(":")[0] for line in lines[1:3]] == ["step   0", "step  25"]


def test_one_line_where_there_is_no_base(tmp_path):
    with pytest.raises(SystemExit, match=f"no .*base0.pt: make it with .* --out {tmp_path}$"):
        one_page.main(str(tmp_path / "base0.pt"))
