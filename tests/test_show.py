"""A decoded prompt, drawn slot by slot."""

import re
from textwrap import dedent

import pytest
import torch

from extras import show
from extras.runs import Run
import latent_tokens
from latent_tokens import SEPARATORS, LatentTokens, Placement, generate
from model import GPT
from tasks import TASKS, TOKEN_ID, decode, encode
from tests.conftest import refused


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


def test_the_picture_at_the_top_of_latent_tokens():
    documentation = latent_tokens.__doc__.splitlines()
    first = next(i for i, line in enumerate(documentation) if line.split() == ["query", "response"])
    picture = dedent("\n".join(documentation[first:first + 5]))
    assert "predicts" in picture
    drawn = show.diagram(Placement.parse("Start_1+Comma_1"), "1,2", "3,4", width=100)
    assert drawn == picture


@pytest.mark.parametrize("notation, query, response, inputs, position_ids, predicts", [
    ("4_1+2_1", "12", "345", "1 2 <2> 3 4 <2> <4> 5", "01223444", "345"),
    ("Comma_2+2_2+End_1", "12", ",", "1 2 <E> <2.1> <2.2> <C1> <C2> ,", "01222222", ",")])
def test_names_tell_groups_apart_and_number_within_each(notation, query, response, inputs,
                                                        position_ids, predicts):
    assert table(show.diagram(Placement.parse(notation), query, response, width=100)) == {
        "slot": list("01234567"), "input": inputs.split(), "position_id": list(position_ids),
        "predicts": list(predicts)}


@pytest.mark.parametrize("notation, names", [
    ("Start,Comma_2", ["<S1>", "<S2>"]), ("12_1+1_1", ["<1>", "<12>"]),
    ("End_1+Equals_1", ["<End>", "<Equals>"]), ("Equals_1", ["<E>"])])
def test_no_two_vectors_have_one_name(notation, names):
    placement = Placement.parse(notation, SEPARATORS | {"Equals": (TOKEN_ID["="],)})
    assert show.latent_names(placement) == names


@pytest.mark.parametrize("notation", ["Start_1+Comma_1", "8_2+End_12", "Comma_2-own"])
@pytest.mark.parametrize("width", [1, 43, 60, 100])
def test_wrapping_keeps_columns_together(notation, width):
    texts = Placement.parse(notation), "44@47=83,", "47@83=34,83@34=21,"
    picture = show.diagram(*texts, width=width)
    assert table(picture) == table(show.diagram(*texts, width=10_000))
    assert max(map(len, picture.splitlines())) <= max(width, 40)  # at least one column
    for block in picture.split("\n\n"):
        heading, slots, inputs, position_ids, read_for = map(middles, block.splitlines())
        assert heading and slots.keys() == inputs.keys() == position_ids.keys() >= read_for.keys()


def test_the_prompt_is_decoded_with_the_latents_of_the_run(finished, capsys, monkeypatch):
    """On random weights: a base of two steps writes nothing but ``;``."""
    monkeypatch.setenv("COLUMNS", "100")
    base = GPT.load(finished / "generation-base60.pt")
    for weights in base.parameters():
        weights.data.normal_(generator=torch.Generator().manual_seed(0))
    latents = LatentTokens(Placement.parse("Start_1+Comma_1"), base.config.n_embd)
    monkeypatch.setattr(show.Run, "open", lambda args: Run(None, [], TASKS["generation"], 0, base))
    monkeypatch.setattr(Run, "latents", lambda run, placement, seed: latents)
    show.main(["--method", "Comma_1+Start_1", "--prompt", "1,2", "--tokens", "5"])
    response = decode(generate(base, latents, [encode("1,2")], 5, TOKEN_ID[";"])[0])
    assert len(response) == 5 and capsys.readouterr().out == (
        f"Start_1+Comma_1 on 1,2 writes {response}\n\n"
        + show.diagram(latents.placement, "1,2", response, width=100) + "\n")


@pytest.mark.parametrize("prompt", ["44@4A=", "1\n2", ""])
def test_a_prompt_that_cannot_be_read_is_one_line(prompt, tmp_path, capsys):
    error = refused(capsys, show, tmp_path, "--method", "Comma_1", "--prompt", prompt)
    assert f"--prompt {prompt!r}: write some of the characters ;,:0123456789+-x@" in error
