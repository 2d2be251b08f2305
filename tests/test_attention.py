"""Kinds of slots and shares, worked by hand."""

import torch

from extras import attention
from extras.attention import Layout, measure, split
from latent_tokens import Placement
from tasks import TASKS, Example, draw_examples
from tests.conftest import refused, some_latents

SMALL = Example("1,2", "3,4")  # slots of Start_1+Comma_1: <S> 1 <C> , 2 3 <C> , 4
BOTH = Placement.parse("Start_1+Comma_1")
CHAIN = Example("44@47=83", ",47@83=34,83@34=21,34@21=53,21@53=72")


def test_an_item_begins_with_its_comma_or_with_the_response_and_is_counted_once():
    assert split("1,23,4", query_length=3) == ([0, 1, 1, 2, 3, 3], [1, 1, 2, 1, 1, 2])
    assert split("1,3,", query_length=1) == ([0, 1, 1, 2], [1, 1, 2, 1])


def test_latents_are_no_verbal_tokens_and_side_by_side_they_are_one_group():
    layout = Layout.of(BOTH, SMALL)
    assert layout.is_latent.nonzero()[:, 0].tolist() == [0, 2, 6]
    assert layout.in_response.nonzero()[:, 0].tolist() == [5, 7, 8]
    assert layout.groups.tolist() == [1, 1, 2, 2, 2, 2, 3, 3, 3]
    layout = Layout.of(Placement.parse("Start_2+Comma_1"), Example(",1", "2"))
    assert layout.groups.tolist() == [1] * 6


def test_the_nearest_group_of_a_comma_is_its_own_and_start_gets_older():
    """0 nearest group, 1 older groups, 2 own item, 3 older items."""
    kinds = Layout.of(BOTH, SMALL).kinds().tolist()
    assert kinds[1][:2] == [0, 2]  # the 1 after <S>
    assert kinds[5][:6] == [1, 3, 0, 3, 3, 2]  # the 3, first of the response
    assert kinds[7][:8] == [1, 3, 1, 3, 3, 3, 0, 2]  # the comma, after <C>
    assert kinds[8] == [1, 3, 1, 3, 3, 3, 0, 2, 2]  # the 4


def test_queries_and_keys_are_not_mixed_up(model, monkeypatch):
    """Slot 5 attends to latent 2, slots 7 and 8 to latent 6; and "uniform" to all that is seen."""
    weights = torch.eye(9)[[0, 0, 0, 0, 0, 2, 0, 6, 6]][None]  # (1, T, T)
    latents = some_latents("Start_1+Comma_1")
    uniform = measure(model, latents, [SMALL])[0][0, 0]
    torch.testing.assert_close(uniform, torch.tensor([1, 1, 1, 3]) / 6)
    monkeypatch.setattr(attention, "attention", lambda *_: weights)
    assert measure(model, latents, [SMALL])[0].tolist() == [[[1.0, 0.0, 0.0, 0.0]] * 3]


def test_weights_are_those_of_their_layer_and_of_what_is_seen(model):
    model.blocks[1].qkv.weight[:16] = 0.0  # without queries it attends uniformly
    uniform, first, second = attention.attention(model, some_latents("Comma_2"), CHAIN)
    torch.testing.assert_close(second, uniform)
    assert (first - uniform).abs().max() > 0.1
    torch.testing.assert_close(first.sum(dim=1), torch.ones(len(first)))
    shares, _ = measure(model, some_latents("Comma_2-latest"), [CHAIN])
    assert not shares[..., 1].any() and shares[..., 0].all()  # older groups are hidden


def test_places_and_layers_are_not_mixed_up():
    nearest = torch.tensor([[0.5] * 3, [0.1, 0.2, 0.3]])  # uniform, layer 0
    shares = torch.stack([nearest, 0 * nearest, 0 * nearest, 1 - nearest], dim=2)
    assert attention.tables(shares, torch.tensor([1, 2, 1])).splitlines() == [
        "to          nearest group   older groups       own item    older items",
        "uniform              0.50           0.00           0.00           0.50",
        "layer 0              0.20           0.00           0.00           0.80",
        "", "to the nearest group, by place in the item",
        "               1     2", "uniform     0.50  0.50", "layer 0     0.20  0.20"]


def test_wrong_answers_are_not_read(finished, capsys, monkeypatch):
    read = []
    monkeypatch.setattr(attention, "answers", lambda model, latents, task, method, examples: [
        each.response if index != 1 else "?" for index, each in enumerate(examples)])
    monkeypatch.setattr(attention, "measure", lambda model, latents, examples: (
        read.extend(examples) or torch.zeros(2, 1, 4), torch.tensor([1])))
    attention.main([str(finished), "--method", "Comma_1", "--length", "99", "--examples", "3"])
    assert capsys.readouterr().out.startswith("2 of 3 answers of length 5 ")
    assert read == draw_examples(TASKS["generation"], [5], "test", 0, 3)[::2]


def test_a_mistake_is_one_line(finished, capsys):
    assert "no answer is without" in refused(capsys, attention, finished, "--method", "Comma_1")
