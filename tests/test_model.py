"""The base model against oracles: explicit attention, no cache, no padding, no future."""

import pytest
import torch

from model import GPTConfig, KVCache


def some_input(batch_size=3, slots=12):
    torch.manual_seed(1)
    token_ids = torch.randint(0, 40, (batch_size, slots))
    return token_ids, torch.arange(slots).expand(batch_size, -1)


def keep_weights(model, keep=True):
    for block in model.blocks:
        block.keep_weights = keep


@pytest.mark.parametrize("padding", [False, True])
def test_fast_attention_equals_the_explicit_one(model, padding):
    """Bug caught: the fused path and the one that keeps its weights disagree on mask or scale."""
    token_ids, position_ids = some_input()
    attention_mask = torch.rand(token_ids.shape) > 0.3 if padding else None
    fast = model(model.embed(token_ids), position_ids, attention_mask)
    keep_weights(model)
    explicit = model(model.embed(token_ids), position_ids, attention_mask)
    torch.testing.assert_close(fast, explicit, rtol=1e-4, atol=1e-4)


def test_attention_weights_are_kept_when_asked_for(model):
    """Bug caught: weights of the wrong shape, or that do not sum to one, or see the future."""
    token_ids, position_ids = some_input()
    model(model.embed(token_ids), position_ids)
    assert all(block.attention_weights is None for block in model.blocks)
    keep_weights(model)
    model(model.embed(token_ids), position_ids)
    for block in model.blocks:
        weights = block.attention_weights
        assert weights.shape == (3, model.config.n_head, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert not weights.triu(diagonal=1).any()


@pytest.mark.parametrize("attention_mask", [None, torch.ones(3, 12, dtype=torch.bool)])
def test_nothing_leaks_from_later_slots(model, attention_mask):
    """Bug caught: causal order taken from position ids, or a mask that is off by one."""
    token_ids, _ = some_input()
    position_ids = torch.randint(0, 12, token_ids.shape)  # ids neither rise nor differ
    before = model(model.embed(token_ids), position_ids, attention_mask)
    for slot in range(1, token_ids.shape[1]):
        changed = token_ids.clone()
        changed[:, slot:] = (changed[:, slot:] + 1) % 40
        after = model(model.embed(changed), position_ids, attention_mask)
        torch.testing.assert_close(after[:, :slot], before[:, :slot], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, slot], before[:, slot])


def test_padding_changes_nothing(model):
    """Bug caught: padding, left, right or in the middle, that other slots attend to."""
    token_ids, position_ids = some_input(batch_size=1, slots=6)
    alone = model(model.embed(token_ids), position_ids)
    real = torch.tensor([2, 3, 5, 6, 7, 9])  # where the six slots go among twelve
    padded, positions = torch.randn(1, 12, model.config.n_embd), torch.full((1, 12), 3)
    attention_mask = torch.zeros((1, 12), dtype=torch.bool)
    padded[:, real], positions[:, real] = model.embed(token_ids), position_ids
    attention_mask[:, real] = True
    torch.testing.assert_close(model(padded, positions, attention_mask)[:, real], alone,
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_cached_equals_uncached(model, pieces):
    """Bug caught: a cache that loses, reorders or overwrites slots, or forgets their padding."""
    token_ids, position_ids = some_input()
    inputs = model.embed(token_ids), position_ids, torch.rand(token_ids.shape) > 0.3
    cache = KVCache(model.config, batch_size=3, capacity=12)
    parts = [model(*part, cache=cache)
             for part in zip(*(tensor.split(pieces, dim=1) for tensor in inputs))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_full_cache_takes_no_more(model, pieces):
    """Bug caught: slots past the end that are dropped without a word, as a slice would do."""
    token_ids, position_ids = some_input()
    cache = KVCache(model.config, 3, capacity=12)
    model(model.embed(token_ids), position_ids, cache=cache)
    with pytest.raises(RuntimeError):
        model(model.embed(token_ids[:, :pieces]), position_ids[:, :pieces], cache=cache)


def test_a_larger_cache_gives_the_same(model):
    """Bug caught: attention to the room that a cache has not filled yet."""
    token_ids, position_ids = some_input()
    tight, roomy = (model(model.embed(token_ids), position_ids,
                          cache=KVCache(model.config, 3, capacity)) for capacity in (12, 50))
    torch.testing.assert_close(roomy, tight)


def test_only_differences_of_positions_matter(model):
    """Bug caught: rotary embeddings that are not relative, or position_ids that are ignored."""
    token_ids, position_ids = some_input()
    embeddings = model.embed(token_ids)
    before = model(embeddings, position_ids)
    torch.testing.assert_close(model(embeddings, position_ids + 20), before, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model(embeddings, position_ids * 2), before, atol=1e-2)


def test_an_embedding_sees_two_tokens_back_and_no_further(model):
    """Bug caught: tables applied in the wrong order, off by one, or looking ahead."""
    a, b, c = (table.weight for table in model.embeddings)
    embedded = model.embed(torch.tensor([[5, 7, 9, 11]]))
    expected = torch.stack([a[5], a[7] + b[5], a[9] + b[7] + c[5], a[11] + b[9] + c[7]])
    torch.testing.assert_close(embedded[0], expected)


def test_nothing_before_the_first_token_adds_nothing(model):
    """Bug caught: decoding, which embeds a row's last tokens, differs where a row is short."""
    padded = model.embed(torch.tensor([[model.nothing, model.nothing, 5, 7]]))
    assert torch.equal(padded[:, 2:], model.embed(torch.tensor([[5, 7]])))


def test_wrong_shapes_are_named(model):
    """Bug caught: shapes that broadcast in silence."""
    token_ids, position_ids = some_input()
    embeddings = model.embed(token_ids)
    with pytest.raises(ValueError, match="position_ids has shape"):
        model(embeddings, position_ids[:, :-1])
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(embeddings, position_ids, torch.ones(1, 12, dtype=torch.bool))


def test_an_impossible_width_is_named():
    """Bug caught: an odd head, whose channels cannot be rotated in pairs."""
    with pytest.raises(ValueError, match="multiple of 2"):
        GPTConfig(vocab_size=10, n_head=3, n_embd=32)
