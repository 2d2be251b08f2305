"""The base model: cache, embeddings, no future. The rest: tests/test_random_cases.py."""

import pytest
import torch

from model import GPT, GPTConfig, rotary_tables


def some_input(batch_size=3, slots=12):
    torch.manual_seed(1)
    token_ids = torch.randint(0, 40, (batch_size, slots))
    return token_ids, torch.arange(slots).expand(batch_size, -1)


@pytest.mark.parametrize("mask", [None, torch.ones(3, 12, 12, dtype=torch.bool).tril()])
def test_nothing_leaks_from_later_slots(model, mask):
    token_ids, _ = some_input()
    position_ids = torch.randint(0, 12, token_ids.shape)  # ids neither rise nor differ
    before = model(model.embed(token_ids), position_ids, mask)
    for slot in range(1, token_ids.shape[1]):
        changed = token_ids.clone()
        changed[:, slot:] = (changed[:, slot:] + 1) % 40
        after = model(model.embed(changed), position_ids, mask)
        torch.testing.assert_close(after[:, :slot], before[:, :slot], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, slot], before[:, slot])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4),
                                              (torch.bfloat16, 0.5), (torch.float16, 0.05)])
@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_cached_equals_uncached(model, dtype, tolerance, pieces):
    """In any places; slots at place 0, such as padding, are seen in their own call alone."""
    token_ids, position_ids = some_input()
    model.to(dtype)
    places = torch.stack([torch.randperm(50)[:12] + 1 for _ in range(3)])
    places[torch.rand(places.shape) > 0.7] = 0
    call = torch.arange(len(pieces)).repeat_interleave(torch.tensor(pieces))  # of each slot
    seen = (places[:, None] > 0) | (call == call[:, None]) & (call == 0) | torch.eye(12).bool()
    inputs, cache = (model.embed(token_ids), position_ids), model.make_cache(3)
    parts = [model(*part[:2], cache=cache, places=part[2])
             for part in zip(*(tensor.split(pieces, dim=1) for tensor in (*inputs, places)))]
    assert cache.keys.dtype == cache.values.dtype == dtype
    expected, stored = model(*inputs, seen.tril()), places > 0  # nobody reads what padding computes
    stored[:, :pieces[0]] = True
    torch.testing.assert_close(torch.cat(parts, dim=1)[stored], expected[stored], rtol=0,
                               atol=tolerance)


def test_neighbouring_positions_differ_whatever_the_default_type():
    cos, _ = rotary_tables(torch.tensor([[256, 257]]), 16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(rotary_tables(torch.tensor([[256, 257]]), 16)[0], cos)
    finally:
        torch.set_default_dtype(torch.float32)


def test_before_the_first_token_there_is_nothing_and_it_is_not_trained():
    model = GPT(GPTConfig(vocab_size=10, n_layer=1, n_head=1, n_embd=8))
    torch.nn.init.normal_(model.head.weight)
    embedded = model.embed(torch.tensor([[3, 4, 5]]))
    assert torch.equal(embedded[0, 0], model.token_embedding[3])
    model(embedded, torch.arange(3)[None]).logsumexp(-1).sum().backward()
    for table in model.embeddings:
        assert len(table.weight) == 11 and not table.weight[10].any()
        assert table.weight.grad[3].any() and not table.weight.grad[10].any()


@pytest.mark.parametrize("wrong", [10, 11, -1])
def test_a_token_id_outside_the_vocabulary_is_named(wrong):
    model = GPT(GPTConfig(vocab_size=10, n_layer=1, n_head=1, n_embd=8))
    for embed, rows in ((model.embed, torch.tensor([[1, 2], [wrong, 3]])),
                        (model.embed_last, [[1], [2, 3, 4, wrong]])):
        with pytest.raises(IndexError, match=f"token id {wrong} is not in the vocabulary, 0 to 9"):
            embed(rows)


def test_wrong_shapes_are_named(model):
    token_ids, position_ids = some_input()
    embeddings = model.embed(token_ids)
    with pytest.raises(ValueError, match="position_ids has shape"):
        model(embeddings, position_ids[:, :-1])
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(embeddings, position_ids, torch.ones(1, 12, 12, dtype=torch.bool))
    cache = model.make_cache(3)
    model(embeddings, position_ids, cache=cache, places=position_ids + 1)
    with pytest.raises(ValueError, match="places has shape"):
        model(embeddings, position_ids, cache=cache, places=position_ids[:1] + 13)
    with pytest.raises(ValueError, match="for the first call"):
        model(embeddings, position_ids, torch.ones(3, 12, 12) > 0, cache, position_ids + 13)
    with pytest.raises(ValueError, match="multiple of 2"):
        GPTConfig(vocab_size=10, n_head=3, n_embd=32)  # odd heads have no pairs of channels


def test_a_base_comes_back_frozen_or_not_at_all(model, tmp_path):
    model.notes = {"steps": 2}
    model.save(tmp_path / "base.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["base.pt"]
    base = GPT.load(tmp_path / "base.pt")
    assert base.config == model.config and base.notes == {"steps": 2} and not base.training
    for name, weight in base.named_parameters():
        assert torch.equal(weight, model.state_dict()[name]) and not weight.requires_grad
    torch.save({"model": model.state_dict(), "step": 50}, tmp_path / "half-trained.pt")
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "base.pt").read_bytes()[:-100])
    for name in ("half-trained.pt", "damaged.pt", "missing.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a readable base"):
            GPT.load(tmp_path / name)
