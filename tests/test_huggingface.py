"""The recipe of docs/huggingface.md, taken from the page. Skipped without ``transformers``.

The base is a tiny Llama, pre-trained here within seconds to count: ``7D,6,5U,6,7,``, where U and D
say up or down from here on; at first it is up. Latents before commas are tuned to count down.
"""

import functools
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
from latent_tokens import (LatentTokens, Placement, generate, make_batch, response_logits,
                           response_loss)
from tests import reference

PAGE = Path(__file__).parents[1].joinpath("docs", "huggingface.md").read_text(encoding="utf-8")
RECIPE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
GIVEN = re.search(r"^    from transformers import .*\n(?:    .*\n)+", PAGE, re.MULTILINE)[0]
VOCABULARY = ["<pad>", "<s>", "</s>", ",", "U", "D", *"0123456789"]
ID = {token: index for index, token in enumerate(VOCABULARY)}
PAD, BOS, EOS, COMMA = range(4)
PLACEMENTS = ["Comma_2", "Start_1+Comma_1", "Comma_2+2_1+End_1+Start_3", "End_2",
              "Start_1+Comma_1-own"]
QUERIES = [[BOS, ID["7"], COMMA], [BOS, ID["2"]], [BOS, ID["3"], COMMA, ID["4"], COMMA]]
RESPONSES = [[ID["6"], COMMA, ID["5"], EOS], [COMMA, COMMA], [ID["8"]]]


# ------------------------------------------------------------------------ a toy base on disk

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
        longest = max(map(len, rows))
        input_ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
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
    response = []
    for n in range(1, length + 1):
        response += [ID[str((first - n) % 10)], COMMA]
    return [BOS, ID[str(first)], COMMA], response


def batches(n: int, rng: random.Random):
    for _ in range(n):
        yield zip(*(counting_down(rng, rng.randint(1, 4)) for _ in range(16)))


@pytest.fixture(scope="module")
def ran(path) -> dict:
    """The names that the page's code defines, after it ran, and the losses of its training."""
    losses, names = [], {"path": path}

    def recorded_loss(*arguments):
        losses.append(response_loss(*arguments))
        return losses[-1]

    exec(textwrap.dedent(GIVEN), names)
    names["before"] = {name: tensor.clone() for name, tensor in names["model"].state_dict().items()}
    names["batches"] = batches(150, random.Random(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_tokens, "response_loss", recorded_loss)
        exec(RECIPE, names)
    return names | {"losses": [loss.item() for loss in losses]}


@pytest.fixture
def base(ran):
    return ran["base"]


def some_latents(base, notation: str) -> LatentTokens:
    latents = LatentTokens(Placement.parse(notation, {"Comma": (COMMA,)}), 64)
    latents.initialize(base.embed.weight, torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents.vectors.mul_(3)
    return latents


# ------------------------------------------------------------------------ a slow reference

def plain_logits(base, latents, notation: str, query, response) -> torch.Tensor:
    """(T, V): one row, no cache, insertion by tests/reference.py, the causal mask spelled out."""
    separators = {"Comma": (COMMA,)}
    slots = reference.row_slots(notation, query, response, separators)
    table = torch.cat([latents.vectors, base.embed(torch.tensor([*query, *response]))])
    T = len(slots)
    return base.model(
        inputs_embeds=table[reference.sources(notation, slots)][None],
        position_ids=torch.tensor([reference.position_ids(notation, slots)]),
        attention_mask=torch.ones(T, T, dtype=torch.bool).tril()[None, None],  # 4D: used as it is
        use_cache=False).logits[0]


@torch.no_grad()
def slow_decode(base, latents, notation: str, query, n_tokens: int) -> list[int]:
    response = []
    for _ in range(n_tokens):
        response.append(int(plain_logits(base, latents, notation, query, response)[-1].argmax()))
    return response


# ------------------------------------------------------------------------ the recipe

def test_the_recipe_is_short():
    """Bug caught: a page that says 25 lines, and more of them."""
    lines = [line for line in RECIPE.splitlines() if line]
    assert len(lines) <= 25


def share_right(base, latents, length: int) -> float:
    """Of twenty queries, how many are answered by counting down ``length`` numbers."""
    rows = [counting_down(random.Random(seed), length) for seed in range(20)]
    queries, responses = map(list, zip(*rows))
    answers = generate(base, latents, queries, max_new_tokens=2 * length)
    return sum(answer == response for answer, response in zip(answers, responses)) / len(rows)


def test_the_loss_falls_and_answers_become_right(ran):
    """Bug caught: a gradient that does not reach the latents; groups missing in decoding."""
    first, last = ran["losses"][0], sum(ran["losses"][-10:]) / 10
    before = share_right(ran["base"], LatentTokens(Placement(), 64), 4)
    after = share_right(ran["base"], ran["latents"], 4)
    print(f"loss {first:.3f} -> {last:.3f}, right {before:.2f} -> {after:.2f}")
    assert last < 0.2 * first and before < 0.1 and after > 0.9


def test_the_base_stays_as_it_was(ran):
    """Bug caught: weights that train along."""
    after = ran["model"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in ran["before"].items())
    assert all(parameter.grad is None for parameter in ran["model"].parameters())
    assert ran["latents"].vectors.requires_grad


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_cached_decoding_equals_uncached_decoding(base, notation):
    """Bug caught: a position, a mask or a group that differs once there is a cache; padding of a
    ragged batch that is seen."""
    latents = some_latents(base, notation)
    answers = generate(base, latents, QUERIES, 24)
    assert answers == [slow_decode(base, latents, notation, query, 24) for query in QUERIES]
    assert any(COMMA in answer for answer in answers)  # so that groups were inserted


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_padded_batch_equals_single_rows(base, notation):
    """Bug caught: a mask that lets padding in, or that is not causal in slot order."""
    latents = some_latents(base, notation)
    together = response_logits(base, latents, make_batch(latents.placement, QUERIES, RESPONSES))
    for logits, query, response in zip(together, QUERIES, RESPONSES):
        alone = plain_logits(base, latents, notation, query, response)
        read = reference.read_slots(notation, query, response, {"Comma": (COMMA,)})
        torch.testing.assert_close(logits[:len(response)], alone[read], atol=1e-4, rtol=1e-4)


def test_without_latents_it_is_the_plain_model(base):
    """Bug caught: an adapter that costs the base something even when it inserts nothing."""
    nothing = LatentTokens(Placement(), 64)
    batch = make_batch(nothing.placement, QUERIES[:1], RESPONSES[:1])
    plain = base.model(input_ids=batch.token_ids).logits[:, 2:-1]
    assert torch.equal(response_logits(base, nothing, batch), plain)
    answer = generate(base, nothing, QUERIES[:1], 24)[0]
    written = base.model.generate(torch.tensor(QUERIES[:1]), do_sample=False, max_new_tokens=24,
                                  eos_token_id=None)[0, 3:]
    assert answer == written.tolist()


@pytest.mark.parametrize("notation", PLACEMENTS[:-1])
def test_verbal_tokens_keep_their_positions(base, notation):
    """Bug caught: latents that move a verbal token, seen by what the rotary embedding gets while
    decoding, and by logits: where nobody sees the latents, they must be the plain model's."""
    rotated = []
    hook = base.model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: rotated.append(kwargs["position_ids"]), with_kwargs=True)
    latents = some_latents(base, notation)
    answer = generate(base, latents, QUERIES[2:], 12)[0]
    hook.remove()
    slots = reference.row_slots(notation, QUERIES[2], answer[:-1], {"Comma": (COMMA,)})
    position_ids = torch.cat(rotated, dim=1)[0].tolist()[:len(slots)]
    verbal = [position for slot, position in zip(slots, position_ids) if slot[0] == "verbal"]
    assert verbal == list(range(len(QUERIES[2]) + 11))

    batch = make_batch(latents.placement, QUERIES[2:], [answer])
    seen = batch.sources >= latents.placement.total
    hidden = base.model(inputs_embeds=latents.embed(batch.sources, base.embed(batch.token_ids)),
                        position_ids=batch.position_ids, attention_mask=seen).logits
    plain = base.model(input_ids=batch.token_ids).logits
    torch.testing.assert_close(hidden[seen], plain[0], atol=1e-4, rtol=1e-4)


def test_bfloat16(path, ran):
    """Bug caught: latents that train in the model's 16 bits, or a clash of dtypes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    base = ran["Base"](model.requires_grad_(False))
    latents = some_latents(base, "Comma_2")
    batch = make_batch(latents.placement, QUERIES, RESPONSES)
    logits = response_logits(base, latents, batch)
    logits.sum().backward()
    assert logits.dtype == latents.vectors.grad.dtype == torch.float32
    assert generate(base, latents, QUERIES, 5)


# ------------------------------------------------------------------------ traps that the page names

def read_as_packed(base, batch, latents, **arguments) -> float:
    """Largest difference of any logit from the plain causal mask's."""
    T = batch.sources.shape[1]
    model = functools.partial(
        base.model, inputs_embeds=latents.embed(batch.sources, base.embed(batch.token_ids)),
        position_ids=batch.position_ids)
    causal = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    return (model(**arguments).logits - model(attention_mask=causal).logits).abs().max().item()


def test_shared_positions_are_taken_for_packed_sequences(base):
    """Documents the trap, and would tell if a later version closed it: without a mask and without a
    cache, equal neighbouring position ids begin a new sequence."""
    latents = some_latents(base, "Comma_2")
    batch = make_batch(latents.placement, QUERIES[:1], RESPONSES[:1])
    ones = torch.ones_like(batch.sources)
    wrong = read_as_packed(base, batch, latents, use_cache=False)
    assert wrong > 1.0
    assert read_as_packed(base, batch, latents, use_cache=False, attention_mask=ones) < 1e-4
    assert read_as_packed(base, batch, latents, use_cache=True) < 1e-4


def test_without_position_ids_the_cache_counts_slots(base):
    """Documents the trap: position_ids left out, as many examples of a cache do."""
    latents = some_latents(base, "Comma_2")
    batch = make_batch(latents.placement, QUERIES[:1], RESPONSES[:1])
    embeddings = latents.embed(batch.sources, base.embed(batch.token_ids))
    rotated = []
    hook = base.model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: rotated.append(kwargs["position_ids"]), with_kwargs=True)
    past = base.model(inputs_embeds=embeddings[:, :5], use_cache=True).past_key_values
    base.model(inputs_embeds=embeddings[:, 5:], past_key_values=past)
    hook.remove()
    assert torch.cat(rotated, dim=1)[0].tolist() == list(range(embeddings.shape[1]))
