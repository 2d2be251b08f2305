"""The pictures: geometry worked by hand, and labels that can be read."""

import json
import xml.etree.ElementTree as ET

import pytest

from extras import pictures
from model import GPT
from tests.test_report import kept, only, printed, row

ENDS = {"base": 0.1, "instruction": 0.1, "reminders": 1, "Start_4": 0.1, "End_4": 0.1, "Comma_4": 1}


def rows() -> list[dict]:
    return [row(method, {length: 0.9 if length < 6 else end - base / 50
                         for length in range(1, 25)}, base)
            for method, end in ENDS.items() for base in (0, 1)]


def parsed(svg: str, name: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}" + name))


def box(label: ET.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text, a character being 0.6 of the font size wide."""
    size = float(label.get("font-size", 13))
    x, y, width = float(label.get("x")), float(label.get("y")), 0.6 * size * len(label.text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[label.get("text-anchor", "start")]
    return left, y - 0.75 * size, left + width, y + 0.2 * size


RUNS = [("repetition-base0, Start_2+Comma_2, 0", [[9.0, 0.1, 0.0001], [4.0]])] * 5


@pytest.mark.parametrize("svg", [
    pictures.curves(only(rows())), pictures.loss_curves(RUNS)])
def test_text_on_other_text_or_anything_outside(svg):
    _, _, width, height = map(float, ET.fromstring(svg).get("viewBox").split())
    boxes = [box(label) for label in parsed(svg, "text")]
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left and right <= width and 0 <= top and bottom <= height
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    for shape in ET.fromstring(svg).iter():
        points = [point.split(",") for point in shape.get("points", "").split()]
        points += [[shape.get(key, 0) for key in pair.split()]
                   for pair in ("x y", "x1 y1", "x2 y2", "cx cy")]
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)


def test_two_methods_that_look_alike_in_grey_print():
    svg = pictures.curves(only(rows()))
    looks = {(line.get("stroke-width"), line.get("stroke-dasharray"))
             for line in parsed(svg, "polyline") if line.get("stroke-width")}
    assert len(looks) == 6
    bold = [label.text for label in parsed(svg, "text") if label.get("font-weight") == "bold"]
    assert bold[1:] == ["Comma_4"]


def test_a_picture_upside_down_or_off_by_half_a_step():
    """Lengths 5 and 6 in halves of a plot 480 wide from x = 52: middles at 172 and 412. 1 is its
    top, y = 64, and 0 its bottom, 280 below. Base 0 has 1 and 0, base 1 0.5 and 0."""
    svg = pictures.curves(only([row("<&>", {5: 1.0, 6: 0.0}),
                                row("<&>", {5: 0.5, 6: 0.0}, 1)]))
    assert [line.get("points") for line in parsed(svg, "polyline")] == [
        f"172.0,{y}.0 412.0,344.0" for y in (64, 204, 134)]  # the bases and their mean
    shade = parsed(svg, "rect")[1]  # the first is the ground
    assert (shade.get("x"), shade.get("width")) == ("52.0", "240.0")
    assert {"<&>", "equation"} <= {label.text for label in parsed(svg, "text")}


def test_losses_of_other_runs_or_off_their_scale(finished, capsys):
    """From 10 at y = 66 to 0.001, 110 below; of three steps, each is 80 to the right."""
    base = GPT.load(finished / "generation-base60.pt")
    base.notes |= {"losses": [10.0, 0.1, 0.001]}
    base.save(finished / "generation-base60.pt")
    (finished / "generation-base1.pt").write_text("damaged")
    starts = [{"lr": 1, "losses": [0.1, 1e-9]}, {"losses": [0.1]}]
    tuned = row("Comma_4", {5: 1.0}, base=60, starts=starts)
    (finished / "results.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in (
        row("base", {5: 1.0}, base=60, starts=[]), tuned)))
    printed(capsys, str(finished), "--svg", str(finished))
    svg = (finished / "losses.svg").read_text()
    assert [label.text for label in parsed(svg, "text") if "steps" in label.text] == [
        "generation-base60: 30 steps", "generation-base60, Comma_4, 0: 20 steps"]
    lines = [line.get("points") for line in parsed(svg, "polyline")]
    assert lines == ["56.0,66.0 136.0,121.0 216.0,176.0", "346.0,121.0 466.0,176.0", "346.0,121.0"]


def test_one_picture_over_another_or_one_of_rows_that_are_not_there(tmp_path, capsys):
    run, new = kept(tmp_path / "a", *rows()), str(tmp_path / "new")
    again = kept(tmp_path / "b", row("Comma_4", {16: 1.0}, task_checksum=2))
    with pytest.raises(SystemExit, match="2"):
        printed(capsys, run, again, "--svg", new)
    assert "draw one experiment at a time" in capsys.readouterr().err
    assert printed(capsys, run, "--svg", new) == f"wrote {new}/generation.svg\n"
