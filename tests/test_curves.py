"""The pictures: geometry worked by hand, and labels that can be read."""

import json
import re
from statistics import fmean
import xml.etree.ElementTree as ET

import pytest

from extras import curves, report
from tests.test_report import rows_of

SVG = "{http://www.w3.org/2000/svg}"


def group(task="generation") -> list[dict]:
    """Six methods on two bases with two seeds, on lengths 1 to 24; five of the lines end alike."""
    ends = {"base": 0.1, "instruction": 0.12, "reminders": 1.0, "Start_4": 0.1, "End_4": 0.11,
            "Comma_4": 0.99}
    return [row for method, end in ends.items() for row in rows_of(method, [
        (base, seed, length, end + (base + seed) / 500 if length > 5 else 0.9)
        for base in (10, 11) for seed in (0, 1) for length in range(1, 25)], task)]


def dial_rows() -> list[dict]:
    return [*group("generation-0"), *group("generation-0.1"), *group()]


@pytest.fixture(params=["curves", "dots", "dial"])
def svg(request) -> str:
    return {"curves": lambda: curves.curves("generation", group()),
            "dots": lambda: curves.dot_plot(group()),
            "dial": lambda: curves.dial(dial_rows())}[request.param]()


def parsed(svg: str, name: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(SVG + name))


def box(label: ET.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text, a character being 0.6 of the font size wide."""
    size = float(label.get("font-size", 13))
    x, y, width = float(label.get("x")), float(label.get("y")), 0.6 * size * len(label.text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[label.get("text-anchor", "start")]
    return left, y - 0.75 * size, left + width, y + 0.2 * size


def test_no_text_lies_on_another_or_outside(svg):
    """Bug caught: five lines that end at one place, with their names on top of one another; names
    that are cut off at the right."""
    _, _, width, height = map(float, ET.fromstring(svg).get("viewBox").split())
    boxes = [box(label) for label in parsed(svg, "text")]
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left and right <= width and 0 <= top and bottom <= height
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_nothing_is_drawn_outside(svg):
    """Bug caught: a value of 0 below the picture, or the last length beyond its edge."""
    _, _, width, height = map(float, ET.fromstring(svg).get("viewBox").split())
    for shape in ET.fromstring(svg).iter():
        for key, most in (("x", width), ("x1", width), ("x2", width), ("cx", width),
                          ("y", height), ("y1", height), ("y2", height), ("cy", height)):
            assert 0 <= float(shape.get(key, 0)) <= most
        for point in shape.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height


def test_a_method_is_a_line_and_a_name():
    """Bug caught: a method left out, or named twice; two that look the same in grey print."""
    picture = curves.curves("generation", group())
    labels = [label.text for label in parsed(picture, "text")]
    lines = parsed(picture, "polyline")
    looks = {(line.get("stroke-width"), line.get("stroke-dasharray")) for line in lines}
    assert len(lines) == len(looks) == 6
    assert all(labels.count(method) == 1 for method in {row["method"] for row in group()})


def test_the_proposed_method_alone_is_bold():
    """Bug caught: the weight on a baseline."""
    bold = [label.text for label in parsed(curves.curves("generation", group()), "text")
            if label.get("font-weight") == "bold" and label.get("font-size") is None]
    assert bold == ["Comma_4"]


def test_coordinates_by_hand():
    """Lengths 5 and 6 in halves of a plot 480 wide from x = 52: middles at 172 and 412. 1 is its
    top, y = 64, and 0 its bottom, 280 below. Bug caught: a picture upside down, or off by half a
    step."""
    rows = rows_of("Comma_4", [(0, 0, 5, 1.0), (0, 0, 6, 0.0)])
    line, = parsed(curves.curves("generation", rows), "polyline")
    assert line.get("points") == "172.0,64.0 412.0,344.0"
    _, shade = parsed(curves.curves("generation", rows), "rect")  # the first is the ground
    assert (shade.get("x"), shade.get("width")) == ("52.0", "240.0")


def test_a_line_is_the_mean_and_its_band_the_range_of_bases():
    """Base 0 has two seeds with mean 0.5, base 1 one with 1: mean 0.75, y = 64 + 280 / 4. Bug
    caught: seeds that count as bases."""
    rows = rows_of("Comma_4", [(0, 0, 6, 0.4), (0, 1, 6, 0.6), (1, 0, 6, 1.0)])
    svg = curves.curves("generation", rows)
    assert parsed(svg, "polyline")[0].get("points") == "292.0,134.0"
    assert parsed(svg, "polygon")[0].get("points") == "292.0,64.0 292.0,204.0"


def test_labels_move_apart_and_keep_their_order():
    """Bug caught: a label pushed below the plot, or next to another method's line."""
    assert curves.spread([100, 300, 101, 299], bottom=300) == [100, 300, 117, 283]


def test_a_pair_is_a_dot():
    """Two bases, two seeds, and two baselines. Bug caught: dots for means."""
    dots = parsed(curves.dot_plot(group()), "circle")
    assert len(dots) == 8 == sum(len(each.pairs)
                                 for each in report.differences("generation", group()))


def test_dots_lie_at_their_difference():
    """From -1, where the interval ends, to 1 on 480 pixels: 0.5 lies 120 to the right of 0. Bug
    caught: a zero line that is not at zero."""
    rows = [*rows_of("Comma_4", [(0, 0, 16, 0.5), (1, 0, 16, 0.5)]),
            *rows_of("Start_4", [(0, 0, 16, 0.5), (1, 0, 16, 0.0)])]
    svg = curves.dot_plot([*rows, *rows_of("Start_2", [(0, 0, 6, 1.0)], "summation")])
    zero, = [float(line.get("x1")) for line in parsed(svg, "line")
             if line.get("stroke") == "#222222"]
    assert [float(dot.get("cx")) - zero for dot in parsed(svg, "circle")] == pytest.approx([0, 120])


def test_the_dial_is_over_far_lengths_of_generation():
    """Bug caught: plain Generation left out (its P is 0.5), or means over all lengths, or the far
    lengths of another task."""
    rows = [*dial_rows(), *rows_of("Start_2", [(0, 0, 26, 0.5)], "summation")]
    labels = [label.text for label in parsed(curves.dial(rows), "text")]
    assert "Generation: accuracy far OOD, equations 16-24" in labels
    assert {"0", "0.1", "0.5"} <= set(labels) and "base" not in labels
    line = parsed(curves.dial(rows), "polyline")[0].get("points").split()  # the boldest: Comma_4
    far = fmean(row["accuracy"] for row in group() if row["method"] == "Comma_4"
                and row["length"] >= 16)
    assert [float(point.split(",")[1]) for point in line] == pytest.approx([344 - 280 * far] * 3,
                                                                           abs=0.1)


def test_no_dial_for_one_setting():
    """Bug caught: a picture of a single point, or a division by zero."""
    assert curves.dial(group()) == curves.dial([]) == ""


def test_a_method_may_miss_lengths():
    """Bug caught: a KeyError for a method that was tested on fewer lengths."""
    rows = [*group(), *rows_of("Start_24", [(10, 0, 3, 1.0), (10, 0, 6, 0.5)])]
    assert len(parsed(curves.curves("generation", rows), "polyline")) == 7
    last = curves.terminal("generation", rows, ascii_only=True).splitlines()[-2]
    assert last == "Start_24       9  |5"


def test_names_are_escaped():
    """Bug caught: a name that ends the XML."""
    svg = curves.curves("a<b&c", rows_of("<x>", [(0, 0, 1, 0.5)], "a<b&c"))
    assert "<x>" in [label.text for label in parsed(svg, "text")]


def test_a_curve_in_the_terminal():
    """Bug caught: a full mark beyond the last block, or the bar before the last ID length."""
    rows = rows_of("Comma_4", [(0, 0, 4, 1.0), (0, 0, 5, 0.99), (0, 0, 6, 0.5), (0, 0, 7, 0.0)])
    assert curves.terminal("generation", rows, ascii_only=False).splitlines() == [
        "```", "accuracy at length 4-5 | 6-7, in eighths", "Comma_4  ██|▅▁", "```"]
    assert "Comma_4  99|50" in curves.terminal("generation", rows, ascii_only=True)


def test_a_terminal_without_blocks_gets_digits(tmp_path, monkeypatch, capsys):
    """Bug caught: a UnicodeEncodeError where the terminal has the ± but no blocks."""
    (tmp_path / "results.json").write_text(json.dumps({"rows": group()}))
    monkeypatch.setattr(report, "encodes", lambda text: not set(text) & set(curves.BLOCKS))
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"Comma_4 +9{5}\|9{19}\n", printed) and "±" in printed


def test_svg_writes_what_there_is(tmp_path, capsys):
    """Bug caught: a dial without rows for it, or tables in between."""
    (tmp_path / "results.json").write_text(json.dumps({"rows": group()}))
    report.main([str(tmp_path), "--svg", str(tmp_path / "new" / "docs")])
    written = sorted(path.name for path in (tmp_path / "new" / "docs").iterdir())
    assert written == ["differences.svg", "generation.svg"]
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "generation.svg", "differences.svg"]
