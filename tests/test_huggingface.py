"""The recipe of docs/huggingface.md, taken from the page. Skipped without ``transformers``.

The base is a tiny Llama, pre-trained here within seconds to count: ``7D,6,5U,6,7,``, where U and D
say up or down from here on; at first it is up. Latents before commas are tuned to count down.
"""

from pathlib import Path
import random
import re
import textwrap

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
import tokenizers
import transformers

import latent_tokens
from latent_tokens import LatentTokens, Placement, generate, make_batch, response_logits
from tests import reference

PAGE = Path(__file__).parents[1].joinpath("docs", "huggingface.md").read_text(encoding="utf-8")
RECIPE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
GIVEN = re.search(r"^    from transformers import .*\n(?:    .*\n)+", PAGE, re.MULTILINE)[0]
VOCABULARY = ["<pad>", "<s>", "</s>", ",", "U", "D", *"0123456789"]
ID = {token: index for index, token in enumerate(VOCABULARY)}
PAD, BOS, EOS, COMMA = range(4)
SEPARATORS = {"Comma": (COMMA,)}
PLACEMENTS = ["Comma_2", "Comma_2+2_1+End_1+Start_3", "End_2", "Start_1+Comma_1-own",
              "Comma_2-latest", "Start_1+Comma_1-own-latest"]
QUERIES = [[BOS, ID["7"], COMMA], [BOS, ID["2"]], [BOS, ID["3"], COMMA, ID["4"], COMMA]]
RESPONSES = [[ID["6"], COMMA, ID["5"], EOS], [COMMA, COMMA], [ID["8"]]]


def document(rng: random.Random) -> list[int]:
    """<s>, then numbers counted up or down, as said last; it is said before half of the commas."""
    number, step, ids = rng.randrange(10), 1, [BOS]
    for _ in range(rng.randint(6, 12)):
        ids.append(ID[str(number)])
        if rng.random() < 0.5:
            step = rng.choice((1, -1))
            ids.append(ID["U" if step == 1 else "D"])
        ids.append(COMMA)
        number = (number + step) % 10
    return ids


def pretrain(model) -> None:
    rng, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        rows = [document(rng) for _ in range(32)]
        input_ids = latent_tokens.pad(rows, PAD)
        targets = input_ids[:, 1:].clone()
        targets[(targets == PAD) | (targets == ID["U"]) | (targets == ID["D"])] = -100
        logits = model(input_ids=input_ids).logits[:, :-1]
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder that ``from_pretrained`` reads."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS))
    pretrain(model)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ID, unk_token="<pad>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>",
                                         eos_token="</s>").save_pretrained(folder)
    return str(folder)


def counting_down(rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    first = rng.randrange(10)
    numbers = [(first - n) % 10 for n in range(1, length + 1)]
    response = [token_id for number in numbers for token_id in (ID[str(number)], COMMA)]
    return [BOS, ID[str(first)], COMMA], response


@pytest.fixture(scope="module")
def ran(path) -> dict:
    """The names that the page's code defines, after it ran."""
    names, rng = {"path": path}, random.Random(1)
    exec(textwrap.dedent(GIVEN), names)
    names["before"] = {name: tensor.clone() for name, tensor in names["model"].state_dict().items()}
    names["batches"] = (zip(*(counting_down(rng, rng.randint(1, 4)) for _ in range(16)))
                        for _ in range(150))
    exec(RECIPE, names)
    return names


def some_latents(base, notation: str) -> LatentTokens:
    latents = LatentTokens(Placement.parse(notation, SEPARATORS), 64)
    latents.initialize(base.embed(torch.arange(len(VOCABULARY))), torch.Generator().manual_seed(3))
    latents.vectors.data.mul_(3)
    return latents


def plain_logits(base, latents, notation: str, query, response) -> torch.Tensor:
    """(T, V): one row, no cache, insertion by tests/reference.py, the causal mask spelled out."""
    slots = reference.row_slots(notation, query, response, SEPARATORS)
    table = torch.cat([latents.vectors, base.embed(torch.tensor([*query, *response]))])
    seen = torch.zeros(len(slots), len(slots), dtype=torch.bool)
    for i, earlier in enumerate(reference.seen_slots(notation, query, response, SEPARATORS)):
        seen[i, earlier] = True
    return base.model(inputs_embeds=table[reference.sources(notation, slots)][None],
                      position_ids=torch.tensor([reference.position_ids(notation, slots)]),
                      attention_mask=seen[None, None], use_cache=False).logits[0]  # 4D: as it is


def test_a_recipe_that_does_not_learn_or_changes_the_base(ran):
    """Of twenty queries, how many are answered right without latents, and with them?"""
    queries, responses = zip(*(counting_down(random.Random(seed), 4) for seed in range(20)))
    before, after = (sum(map(list.__eq__, generate(ran["base"], latents, list(queries), 8),
                             responses)) for latents in (LatentTokens(Placement(), 64),
                                                         ran["latents"]))
    assert before < 2 and after > 18
    weights = ran["model"].state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ran["before"].items())
    assert all(parameter.grad is None for parameter in ran["model"].parameters())
    assert ran["latents"].vectors.requires_grad


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_cache_or_positions_or_padding_that_change_a_row(ran, notation):
    base, latents = ran["base"], some_latents(ran["base"], notation)
    together = response_logits(base, latents, make_batch(latents.placement, QUERIES, RESPONSES))
    for logits, query, response in zip(together, QUERIES, RESPONSES):
        alone = plain_logits(base, latents, notation, query, response)
        read = reference.read_slots(notation, query, response, SEPARATORS)
        torch.testing.assert_close(logits[:len(response)], alone[read], atol=1e-4, rtol=1e-4)
    answers, slow = generate(base, latents, QUERIES, 24), [[] for _ in QUERIES]
    for query, response in zip(QUERIES, slow):
        for _ in range(24):
            logits = plain_logits(base, latents, notation, query, response)
            response.append(int(logits[-1].argmax()))
    assert answers == slow and any(COMMA in answer for answer in answers)  # groups were inserted


@pytest.mark.filterwarnings("error::UserWarning")  # it has no reason for a word
def test_latents_in_the_type_of_a_bfloat16_model(path, ran):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    base = ran["Pretrained"](model)
    latents = some_latents(base, "Comma_2")
    batch = make_batch(latents.placement, QUERIES, RESPONSES)
    logits = response_logits(base, latents, batch)
    logits.sum().backward()
    assert logits.dtype == latents.vectors.grad.dtype == torch.float32
    assert generate(base, latents, QUERIES, 5)
