"""The base model against oracles: explicit attention, no cache, no padding, no future."""

import pytest
import torch

from model import GPTConfig, KVCache


def some_input(rows=3, slots=12):
    torch.manual_seed(1)
    return torch.randint(0, 40, (rows, slots)), torch.arange(slots).expand(rows, -1)


def test_fast_attention_equals_the_explicit_one(model):
    """Bug caught: the fused path and the one that shows its weights disagree on mask or scale."""
    token_ids, position_ids = some_input()
    valid = torch.rand(token_ids.shape) > 0.3
    weights = []
    explicit = model(token_ids, position_ids, valid, weights=weights)
    fast = model(token_ids, position_ids, valid)
    torch.testing.assert_close(fast, explicit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(token_ids, position_ids),
                               model(token_ids, position_ids, weights=[]), rtol=1e-4, atol=1e-4)
    assert len(weights) == model.config.layers
    B, T = token_ids.shape
    for layer in weights:
        assert layer.shape == (B, model.config.heads, T, T)
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:3]))


@pytest.mark.parametrize("valid", [None, torch.ones(3, 12, dtype=torch.bool)])
def test_nothing_leaks_from_later_slots(model, valid):
    """Bug caught: causal order taken from position ids, or a mask that is off by one."""
    token_ids, _ = some_input()
    position_ids = torch.randint(0, 12, token_ids.shape)  # ids neither rise nor differ
    before = model(token_ids, position_ids, valid)
    for slot in range(1, token_ids.shape[1]):
        changed = token_ids.clone()
        changed[:, slot:] = (changed[:, slot:] + 1) % 40
        after = model(changed, position_ids, valid)
        torch.testing.assert_close(after[:, :slot], before[:, :slot], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, slot], before[:, slot])


def test_padding_changes_nothing(model):
    """Bug caught: padding, left, right or in the middle, that other slots attend to."""
    token_ids, position_ids = some_input(rows=1, slots=6)
    alone = model(token_ids, position_ids)
    real = torch.tensor([2, 3, 5, 6, 7, 9])  # where the six slots go among twelve
    padded, positions = torch.randn(1, 12, model.config.width), torch.full((1, 12), 3)
    valid = torch.zeros((1, 12), dtype=torch.bool)
    padded[:, real], positions[:, real] = model.embed(token_ids), position_ids
    valid[:, real] = True
    torch.testing.assert_close(model(padded, positions, valid)[:, real], alone,
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2]])
def test_cached_equals_uncached(model, pieces):
    """Bug caught: a cache that loses, reorders or overwrites slots, or forgets their padding."""
    token_ids, position_ids = some_input()
    inputs, valid = model.embed(token_ids), torch.rand(token_ids.shape) > 0.3
    cache, parts = KVCache(), []
    for part in zip(*(tensor.split(pieces, dim=1) for tensor in (inputs, position_ids, valid))):
        parts.append(model(*part, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), model(inputs, position_ids, valid),
                               rtol=1e-4, atol=1e-4)


def test_only_differences_of_positions_matter(model):
    """Bug caught: rotary embeddings that are not relative, or position_ids that are ignored."""
    token_ids, position_ids = some_input()
    before = model(token_ids, position_ids)
    torch.testing.assert_close(model(token_ids, position_ids + 20), before, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model(token_ids, position_ids * 2), before, atol=1e-2)


def test_an_embedding_sees_two_tokens_back_and_no_further(model):
    """Bug caught: tables applied in the wrong order, off by one, or looking ahead."""
    a, b, c = (table.weight for table in model.embeddings)
    embedded = model.embed(torch.tensor([[5, 7, 9, 11]]))
    expected = torch.stack([a[5], a[7] + b[5], a[9] + b[7] + c[5], a[11] + b[9] + c[7]])
    torch.testing.assert_close(embedded[0], expected)
    nothing = model.config.vocab_size
    assert torch.equal(model.embed(torch.tensor([[nothing, nothing, 5, 7]]))[:, 2:],
                       embedded[:, :2])


def test_embeddings_and_token_ids_are_the_same_input(model):
    """Bug caught: latents, which come as embeddings, enter elsewhere than tokens do."""
    token_ids, position_ids = some_input()
    assert torch.equal(model(model.embed(token_ids), position_ids), model(token_ids, position_ids))


def test_wrong_inputs_are_named(model):
    """Bug caught: shapes that broadcast in silence; look-back lost where ids continue a cache."""
    token_ids, position_ids = some_input()
    cache = KVCache()
    model(token_ids, position_ids, cache=cache)
    with pytest.raises(ValueError, match="pass embeddings"):
        model(token_ids, position_ids, cache=cache)
    with pytest.raises(ValueError, match="position_ids has shape"):
        model(token_ids, position_ids[:, :-1])
    with pytest.raises(ValueError, match="valid has shape"):
        model(token_ids, position_ids, torch.ones(1, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="multiple of 2"):
        GPTConfig(vocab_size=10, heads=3, width=32)
