"""A decoded prompt, drawn slot by slot."""

import re
from textwrap import dedent

import pytest
import torch

from extras import show
from extras.controls import load_frozen
import latent_tokens
from latent_tokens import SEPARATORS, LatentTokens, Placement, generate
from tasks import TOKEN_ID, decode, encode
import train


def table(picture: str) -> dict[str, list[str]]:
    """The texts of each row, all blocks together; the headings are left out."""
    rows = {"slot": [], "input": [], "position_id": [], "predicts": []}
    for line in picture.splitlines():
        if line[:13].strip():
            rows[line[:13].strip()] += line[13:].split()
    return rows


def middles(line: str) -> dict[int, str]:
    """The texts of a line, by the column that each has its middle in."""
    return {match.start() + len(match[0]) // 2: match[0]
            for match in re.finditer(r"\S+", line[13:])}


# ------------------------------------------------------------------------ the picture

def test_the_picture_at_the_top_of_latent_tokens():
    """Bug caught: a row, a column or a heading that is not where the documentation has it."""
    documentation = latent_tokens.__doc__.splitlines()
    first = next(i for i, line in enumerate(documentation) if line.split() == ["query", "response"])
    picture = dedent("\n".join(documentation[first:first + 5]))
    assert "predicts" in picture
    drawn = show.diagram(Placement.parse("Start_1+Comma_1"), "1,2", "3,4", width=100)
    assert drawn == picture


def test_a_periodic_group():
    """Bug caught: a name that counts slots, or the 4th and 2nd token's latents confused."""
    assert table(show.diagram(Placement.parse("4_1+2_1"), "12", "345", width=100)) == {
        "slot": list("01234567"),
        "input": ["1", "2", "<2>", "3", "4", "<2>", "<4>", "5"],
        "position_id": list("01223444"),
        "predicts": ["3", "4", "5"]}


def test_groups_of_two():
    """Bug caught: the same name for both latents of a group, or numbers that run on from group to
    group; <21>, which could be the latent of 21_1."""
    assert table(show.diagram(Placement.parse("Comma_2+2_2+End_1"), "12", ",", width=100)) == {
        "slot": list("01234567"),
        "input": ["1", "2", "<E>", "<2.1>", "<2.2>", "<C1>", "<C2>", ","],
        "position_id": list("01222222"),
        "predicts": [","]}


def test_a_response_is_read_off_the_end_of_the_augmented_query():
    """Bug caught: query and response parted at the last verbal token, before an End latent."""
    assert show.diagram(Placement.parse("End_1"), "1", "2", width=100).splitlines() == [
        "               query           response",
        "slot           0    1          2",
        "input          1   <E>         2",
        "position_id    0    1          1",
        "predicts            2"]


@pytest.mark.parametrize("notation, names", [
    ("Start,Comma_2", ["<S1>", "<S2>"]), ("12_1+1_1", ["<1>", "<12>"]),
    ("End_1+Equals_1", ["<End>", "<Equals>"]), ("Equals_1", ["<E>"])])
def test_names_of_latents(notation, names):
    """Bug caught: one name for two vectors, or a group in two places named twice."""
    placement = Placement.parse(notation, SEPARATORS | {"Equals": (TOKEN_ID["="],)})
    assert show.latent_names(placement) == names


@pytest.mark.parametrize("notation", ["Start_1+Comma_1", "8_2+End_12", "Comma_2-own"])
@pytest.mark.parametrize("width", [1, 43, 60, 100])
def test_wrapping_keeps_columns_together(notation, width):
    """Bug caught: a slot lost at the edge, a line too long, or one that breaks elsewhere than those
    above it, so that a position id stands under another slot."""
    texts = Placement.parse(notation), "44@47=83,", "47@83=34,83@34=21,"
    picture = show.diagram(*texts, width=width)
    assert table(picture) == table(show.diagram(*texts, width=10_000))
    assert max(map(len, picture.splitlines())) <= max(width, 40)  # at least one column
    for block in picture.split("\n\n"):
        heading, slots, inputs, position_ids, read_for = map(middles, block.splitlines())
        assert heading and slots.keys() == inputs.keys() == position_ids.keys() >= read_for.keys()


def test_each_block_says_where_query_and_response_begin():
    """Bug caught: a heading in the first block alone, or the gap in the wrong one."""
    picture = show.diagram(Placement(), "123", "4567", width=13 + 6 + 5 + 2 * 5)
    assert [block.splitlines()[:2] for block in picture.split("\n\n")] == [
        ["               query", "slot           0    1"],
        ["               query      response", "slot           2          3"],
        ["               response", "slot           4    5"],
        ["               response", "slot           6"]]


# ------------------------------------------------------------------------ the command

@pytest.fixture
def folder(finished, monkeypatch):
    """A run with the latents of Start_1+Comma_1, and a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    path = finished / "generation-base0.pt"
    saved = torch.load(path, weights_only=True)
    for weights in saved["model"].values():  # a base of two steps writes nothing but ;
        weights.normal_(generator=torch.Generator().manual_seed(0))
    torch.save(saved, path)
    return finished


def test_the_prompt_is_decoded_with_the_latents_of_the_run(folder, capsys):
    """Bug caught: other latents, another prompt, or a picture of something else than was written;
    the parts of a sum in another order than in the name of the file."""
    show.main([str(folder), "--method", "Comma_1+Start_1", "--prompt", "1,2", "--tokens", "5"])
    title, _, picture = capsys.readouterr().out.partition("\n\n")
    base = load_frozen(folder / "generation-base0.pt")
    latents = LatentTokens.load(
        folder / "latents/generation-base0-Start_1+Comma_1-seed0.pt", base.config.n_embd)
    response = decode(generate(base, latents, [encode("1,2")], 5, TOKEN_ID[";"])[0])
    assert len(response) == 5 and title == f"Start_1+Comma_1 on 1,2 writes {response}"
    assert picture == show.diagram(latents.placement, "1,2", response, width=100) + "\n"


def test_without_a_prompt_it_is_the_first_query_of_the_test(folder, capsys):
    """Bug caught: a query that latents may have been tuned on."""
    show.main([str(folder), "--method", "Start_1+Comma_1"])
    query = capsys.readouterr().out.split()[2]
    assert train.draw_examples(train.TASKS["generation"], (5,), "test", 0, 4)[0].query == query


def test_latents_that_are_not_there(folder, capsys):
    """Bug caught: a traceback, or advice that tunes other latents than were asked for."""
    with pytest.raises(SystemExit):
        show.main([str(folder), "--method", "Comma_1", "--seed", "1"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "generation-base0-Comma_1-seed1.pt" in error
    arguments = error.split("python train.py ")[1].split()
    asked = train.make_parser().parse_args(arguments)
    assert (asked.task, asked.methods, asked.bases, asked.seeds, asked.out) == (
        "generation", ["Comma_1"], [0], 2, folder)


@pytest.mark.parametrize("arguments, expected", [
    (["--prompt", "44@4A="], "the character 'A', which is not in the alphabet ;,:0123456789+-x@"),
    (["--prompt", "1\n2"], r"the character '\n'"),
    (["--prompt", ""], "--prompt is empty"),
    (["--tokens", "0"], "--tokens must be positive"),
    (["--method", "base"], "unknown placement 'base'"),
    ([], "does not hold a run")])
def test_mistakes_are_one_line(arguments, expected, tmp_path, capsys):
    """Bug caught: a KeyError or a ValueError from deep inside; an error that names no remedy."""
    with pytest.raises(SystemExit):
        show.main([str(tmp_path), "--method", "Comma_1", *arguments])
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
