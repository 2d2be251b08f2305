"""Kinds of slots, shares and maps, worked by hand."""

from xml.etree import ElementTree

import pytest
import torch

from extras import attention
from extras.attention import Layout, Measured, shares, split
from latent_tokens import LatentTokens, Placement
from tasks import TASKS, Example, draw_examples

SMALL = Example("1,2", "3,4")  # slots of Start_1+Comma_1: <S> 1 <C> , 2 3 <C> , 4
CHAIN = Example("44@47=83,", "47@83=34,83@34=21,34@21=53,21@53=72,")


def tuned(notation: str) -> LatentTokens:
    """Latents of some length, for the tiny model."""
    latents = LatentTokens(Placement.parse(notation), 16)
    torch.nn.init.normal_(latents.vectors, generator=torch.Generator().manual_seed(0))
    return latents


def weights_on(targets: list[int]) -> torch.Tensor:
    """(1, T, T): every slot attends to one slot alone."""
    return torch.eye(len(targets))[targets][None]


# ------------------------------------------------------------------------------------ slots by kind

def test_an_item_ends_with_its_comma_and_with_the_query():
    """Bug caught: a comma that opens the next item, a query that runs on into the response, or one
    that ends with a comma counted as two items."""
    assert split("1,23,4", query_length=3) == ([0, 0, 1, 2, 2, 3], [1, 2, 1, 1, 2, 1])
    assert split("1,3,", query_length=2) == ([0, 0, 1, 1], [1, 2, 1, 2])


def test_slots_of_a_small_example():
    """Bug caught: latents taken for verbal tokens, or verbal tokens numbered by slot."""
    layout = Layout.of(Placement.parse("Start_1+Comma_1"), SMALL)
    assert layout.latents == "0 1   1  " and layout.characters == " 1 ,23 ,4"
    assert layout.in_response.nonzero()[:, 0].tolist() == [5, 7, 8]
    assert layout.groups.tolist() == [1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_kinds_of_a_small_example():
    """0 nearest group, 1 older groups, 2 own item, 3 older items. Bug caught: a Start group that is
    always (or never) the nearest, or a comma whose nearest group is that of the item before."""
    kinds = Layout.of(Placement.parse("Start_1+Comma_1"), SMALL).kinds().tolist()
    assert kinds[1][:2] == [0, 2]  # the 1 after <S>
    assert kinds[5][:6] == [1, 3, 0, 3, 3, 2]  # the 3, first of the response
    assert kinds[7][:8] == [1, 3, 1, 3, 3, 2, 0, 2]  # its comma, after <C>
    assert kinds[8] == [1, 3, 1, 3, 3, 3, 0, 3, 2]  # the 4


def test_latents_side_by_side_are_one_group():
    """Bug caught: every latent its own group, or Start and Comma told apart where they touch."""
    layout = Layout.of(Placement.parse("Start_2+Comma_1"), Example(",1", "2"))
    assert layout.latents == "012   " and layout.groups.tolist() == [1] * 6


# ------------------------------------------------------------------------------------------- shares

@pytest.mark.parametrize("notation", ["Comma_2", "Start_3", "End_2", "Start_1+Comma_1", "4_2-own"])
def test_shares_sum_to_one(model, notation):
    """Bug caught: a slot of no kind or of two, or attention to slots that come later."""
    examples = [CHAIN, Example("12@34=57,", "34@57=82,57@82=45,82@45=37,45@37=72,")]
    measured = Measured.over(model, tuned(notation), examples)
    assert measured.shares.shape == (3, 72, 4)  # uniform and two layers; 2 * 36 characters
    torch.testing.assert_close(measured.shares.sum(dim=2), torch.ones(3, 72))


def test_all_attention_on_the_nearest_group():
    """Slot 5 on latent 2, slots 7 and 8 on latent 6. Bug caught: rows of the query measured, or
    queries and keys mixed up."""
    layout = Layout.of(Placement.parse("Start_1+Comma_1"), SMALL)
    everything = shares(layout, weights_on([0, 0, 0, 0, 0, 2, 0, 6, 6]))
    assert everything.tolist() == [[[1.0, 0.0, 0.0, 0.0]] * 3]


def test_uniform_is_a_count_of_visible_slots(model):
    """The 3 of the small example sees six slots. Bug caught: a null that counts all slots of the
    row, or verbal ones alone."""
    measured = Measured.over(model, tuned("Start_1+Comma_1"), [SMALL])
    torch.testing.assert_close(measured.shares[0, 0], torch.tensor([1, 1, 1, 3]) / 6)


def test_weights_are_those_of_their_layer(model):
    """Layer 1 without queries attends uniformly; layer 0 does not. Bug caught: layers off by one,
    heads summed, or a model left in its slow mode."""
    model.blocks[1].qkv.weight[:16] = 0.0
    uniform, first, second = attention.attention(model, tuned("Comma_2"), CHAIN)
    torch.testing.assert_close(second, uniform)
    assert (first - uniform).abs().max() > 0.1
    torch.testing.assert_close(first.sum(dim=1), torch.ones(len(first)))
    assert not any(block.keep_weights for block in model.blocks)


def test_a_mean_at_each_place():
    """Two items of two places. Bug caught: places and items mixed up, or another kind's share."""
    nearest = torch.tensor([[0.5] * 4, [0.1, 0.2, 0.3, 0.4]])  # uniform, layer 0
    four = torch.stack([nearest, 0 * nearest, 0 * nearest, 1 - nearest], dim=2)
    measured = Measured(four, items=torch.tensor([1, 1, 2, 2]), places=torch.tensor([1, 2, 1, 2]))
    assert measured.tables(layer=0).splitlines() == [
        "to          nearest group   older groups       own item    older items",
        "uniform              0.50           0.00           0.00           0.50",
        "layer 0              0.25           0.00           0.00           0.75",
        "", "to the nearest group, by place in the item",
        "               1     2",
        "uniform     0.50  0.50", "layer 0     0.20  0.30",
        "", "the same in layer 0, by item",
        "item 1      0.10  0.20", "item 2      0.30  0.40"]


def test_the_favourite_layer_is_none_of_the_uniform_row():
    """The nearest group gets 0.9 uniformly, 0.1 in layer 0 and 0.2 in layer 1. Bug caught: the null
    taken for a layer, or older groups counted."""
    four = torch.tensor([[[0.9, 0.0, 0.1, 0.0]], [[0.1, 0.8, 0.1, 0.0]], [[0.2, 0.1, 0.0, 0.7]]])
    assert Measured(four, torch.tensor([1]), torch.tensor([1])).favourite_layer() == 1


# --------------------------------------------------------------------------------------------- maps

def test_the_window_of_a_chain():
    """Items 1-4 are the response: 2 and 3 are its middle. Bug caught: a window that starts after
    the group, or rows of latents."""
    layout = Layout.of(Placement.parse("Comma_2"), CHAIN)
    rows, columns = layout.window()
    assert "".join(layout.characters[row] for row in rows) == "83@34=21,34@21=53,"
    shown = "".join(layout.latents[i].strip() or layout.characters[i] for i in columns)
    assert shown == "01,47@83=3401,83@34=2101,34@21=5301,"


@pytest.mark.parametrize("notation, example", [
    ("Start_2", Example("ab1>", "abab")), ("Comma_2", Example("ab1>", "abab")),
    ("Comma_1", Example("a=3,k=7?ak>", "a=3@k=7>10")), ("End_1", Example("1", "2"))])
def test_every_example_has_a_window(notation, example):
    """Bug caught: a crash on a response of one item, or without a group before it."""
    layout = Layout.of(Placement.parse(notation), example)
    rows, columns = layout.window()
    assert set(rows) <= set(columns) and rows[-1] == len(layout.groups) - 1


def test_a_map_in_text():
    """Weights of 0.2, 0.1, 0.05, 0.02 and just less. Bug caught: shades off by one step, columns
    that stand under other labels, or block characters on a plain terminal."""
    layout = Layout.of(Placement.parse("Start_1+Comma_1"), SMALL)
    weights = torch.zeros(9, 9)
    weights[5, 2], weights[5, 3], weights[5, 4], weights[7, 6] = 0.2, 0.1, 0.05, 0.02
    weights[8, 6] = 0.0199
    assert attention.text_map(layout, weights, attention.ASCII_SHADES).splitlines() == [
        "latents  1   1", "verbal    ,23 ,4",
        "      3  #*:", "      ,      .", "      4",
        "weights: . from 0.02, : from 0.05, * from 0.1, # from 0.2"]


def test_a_map_as_a_picture(model):
    """Bug caught: a picture that no browser reads (``>`` and ``&`` unescaped), cells of slots that
    come later, or black on a dark page."""
    latents, example = tuned("Comma_1"), Example("a=3,k=7?ak>", "a=3@k=7>10")
    layout = Layout.of(latents.placement, example)
    weights = attention.attention(model, latents, example)[1]
    root = ElementTree.fromstring(attention.svg_map(layout, weights, "a < b & c"))
    background, *cells = root.findall("{http://www.w3.org/2000/svg}rect")
    rows, columns = layout.window()
    assert background.get("fill") == "#fff" and root[0].text == "a < b & c"
    assert len(cells) == sum(column <= row for row in rows for column in columns)
    orange = sum(cell.get("fill") == "#c2410c" for cell in cells)
    assert orange == sum(layout.latents[column] != " " for column in columns) * len(rows)


# ------------------------------------------------------------------------------------- command line

def test_attention_of_a_run(finished, tmp_path, capsys, monkeypatch):
    """The second answer is wrong. Bug caught: wrong answers measured, too, or no picture."""
    monkeypatch.setattr(attention, "answers", lambda model, latents, task, method, examples: [
        each.response if index != 1 else "?" for index, each in enumerate(examples)])
    picture = tmp_path / "map.svg"
    attention.main([str(finished), "--method", "Comma_1", "--length", "4", "--examples", "3",
                    "--svg", str(picture)])
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 3 answers of length 4 ") and "Comma_1, layer 0: " in printed
    first = draw_examples(TASKS["generation"], [4], "test", 0, 3)[0]
    assert first.response.split(",")[1][:2] in printed
    assert ElementTree.parse(picture)


@pytest.mark.parametrize("arguments, message", [
    (["--method", "Comma_2"], "tune these latents with"),
    (["--length", "4"], "no answer is without"),
    (["--length", "0"], "choose from 1 to 5"), (["--layer", "1"], "choose from 0 to 0")])
def test_a_mistake_is_one_line(finished, capsys, arguments, message):
    """Bug caught: a traceback for what was not tuned, not answered, or does not exist."""
    with pytest.raises(SystemExit):
        attention.main([str(finished), "--method", "Comma_1", *arguments])
    assert message in capsys.readouterr().err
