"""The pictures that ``extras.report --svg`` writes, without a plotting library.

    {task}.svg       the metric of the claim against length, a line for each method
    differences.svg  each pair of a claim's differences as a dot, and the interval of the mean
    dial.svg         far OOD accuracy against how often the text of pre-training restates its rule

An SVG is text: ``<polyline points="40,20 60,80"/>`` is a line, and y grows downwards. So a picture
is a list of strings, and a scale from data to pixels is all the geometry there is. The white ground
keeps it readable on a dark page; widths and dashes tell the lines apart in grey print.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise, product
from math import floor
from pathlib import Path
import re
from statistics import fmean

from extras.claims import Difference, Values, by_base, by_length, differences, interval
from extras.experiments import Experiment
from extras.tables import span

LEFT, TOP, WIDTH, HEIGHT = 52, 64, 480, 280  # the plot area, in pixels
GAP = 17  # from one label to the next
ROW = 36  # height of a row of dots
DIAL_METHODS = ("reminders", "Comma_4", "instruction", "Start_4")

Scale = Callable[[float], float]  # data to pixels


@dataclass(frozen=True)
class Style:
    colour: str
    width: float
    dashes: str


REFERENCES = {"base": Style("#777777", 1.5, "1 4"), "instruction": Style("#333333", 1.5, "9 4"),
              "reminders": Style("#111111", 1.5, "none")}
PROPOSED = (Style("#0072b2", 5, "none"), Style("#56b4e9", 3.5, "9 5"), Style("#009e73", 3, "4 3"))
OTHERS = (Style("#d55e00", 2.2, "7 3"), Style("#a03c8c", 2.2, "2 3"),
          Style("#8a6d00", 2.2, "9 3 2 3"), Style("#00785a", 2.2, "2 3 2 6"),
          Style("#b03030", 2.2, "14 3"))


def styles(proposals: Iterable[str], methods: Iterable[str]) -> dict[str, Style]:
    """Proposed methods are bold, references thin; in the order of drawing, thin ones on top."""
    proposed, others = cycle(PROPOSED), cycle(OTHERS)
    chosen = {method: REFERENCES.get(method)
              or next(proposed if method in proposals else others)
              for method in methods}
    return dict(sorted(chosen.items(), key=lambda item: -item[1].width))


# ------------------------------------------------------------------------------------------- SVG

def element(name: str, content: str = "", **attributes: float | str) -> str:
    """``<name key="value">content</name>``, where ``stroke_width`` becomes stroke-width."""
    pairs = (f' {key.replace("_", "-")}="{value if isinstance(value, str) else round(value, 2)}"'
             for key, value in attributes.items())
    return f"<{name}{''.join(pairs)}>{content}</{name}>"


def text(x: float, y: float, content: str, **attributes: float | str) -> str:
    return element("text", escape(content), x=x, y=y, **attributes)


def segment(x1: float, y1: float, x2: float, y2: float, stroke: str, **attributes) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **attributes)


def points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def picture(width: float, height: float, title: str, parts: list[str]) -> str:
    lines = [element("title", escape(title)),
             element("rect", width=width, height=height, rx=8, fill="#ffffff"),
             text(16, 26, title, font_size=15, font_weight="bold"), *parts]
    return element("svg", "\n".join(["", *lines, ""]), xmlns="http://www.w3.org/2000/svg",
                   width=width, height=height, viewBox=f"0 0 {width} {height}",
                   font_family="sans-serif", font_size=13, fill="#222222") + "\n"


def scale(low: float, high: float, start: float, stop: float) -> Scale:
    """From low ... high in the data to start ... stop in pixels."""
    return lambda value: start + (stop - start) * (value - low) / (high - low)


def axes(x: Scale, y: Scale, ticks: Iterable[float], name: str) -> list[str]:
    """A grid of fifths, the ticks of x, and the name of x."""
    parts = []
    for fifth in range(6):
        height = y(fifth / 5)
        parts += [segment(LEFT, height, LEFT + WIDTH, height, "#dddddd"),
                  text(LEFT - 8, height + 4, f"{fifth / 5:.1f}", text_anchor="end")]
    bottom = y(0)
    for tick in ticks:
        parts += [segment(x(tick), bottom, x(tick), bottom + 5, "#222222"),
                  text(x(tick), bottom + 19, f"{tick:g}", text_anchor="middle")]
    return [*parts, text(LEFT + WIDTH / 2, bottom + 39, name, text_anchor="middle")]


def spread(wanted: list[float], bottom: float) -> list[float]:
    """The same places, moved so that they are GAP apart or more, and none is below ``bottom``."""
    places, order = list(wanted), sorted(range(len(wanted)), key=wanted.__getitem__)
    for above, below in pairwise(order):
        places[below] = max(places[below], places[above] + GAP)
    for index in reversed(order):
        places[index] = min(places[index], bottom)
        bottom = places[index] - GAP
    return places


def lines(x: Scale, y: Scale, values: Values, looks: dict[str, Style]) -> list[str]:
    """The mean of each method as a line, its name to the right of the line's end."""
    parts, margin = [], LEFT + WIDTH + 24
    ends = [y(fmean(values[method][max(values[method])])) for method in looks]
    for (method, look), end, place in zip(looks.items(), ends, spread(ends, y(0))):
        means = [(x(at), y(fmean(values[method][at]))) for at in sorted(values[method])]
        parts += [element("polyline", points=points(means), fill="none", stroke=look.colour,
                          stroke_width=look.width, stroke_dasharray=look.dashes),
                  element("circle", cx=means[-1][0], cy=end, r=1.5 + look.width / 2,
                          fill=look.colour),
                  segment(means[-1][0], end, margin - 4, place, look.colour, stroke_width=0.8),
                  text(margin, place + 4, method, fill=look.colour,
                       font_weight="bold" if look in PROPOSED else "normal")]
    return parts


def size(values: Values) -> tuple[float, float]:
    """Width of a picture with these labels, and height of its plot area."""
    return LEFT + WIDTH + 40 + 9 * max(map(len, values)), max(HEIGHT, GAP * len(values))


# -------------------------------------------------------------------------------------- pictures

def split_marks(each: Experiment, x: Scale, height: float) -> list[str]:
    """The names of the splits, and a grey ground where latents are tuned."""
    parts = []
    for name, tested in each.splits.items():
        start = x(tested[0] - 0.5)
        parts += [segment(start, TOP - 20, start, TOP, "#999999"),
                  text(start + 5, TOP - 8, f"{name} {span(tested)}", font_size=12)]
    if tuned := each.splits.get("ID"):
        start, stop = x(tuned[0] - 0.5), x(tuned[-1] + 0.5)
        parts.append(element("rect", x=start, y=TOP, width=stop - start, height=height,
                             fill="#eeeeee"))
    return parts


def curves(each: Experiment) -> str:
    """The metric against length. A band goes from the lowest to the highest base."""
    values = by_length(each)
    looks, (width, height) = styles(each.claim.proposed, values), size(values)
    first, last = each.lengths[0], each.lengths[-1]
    x = scale(first - 0.5, last + 0.5, LEFT, LEFT + WIDTH)
    y = scale(0, 1, TOP + height, TOP)
    step = next(step for step in (1, 2, 5, 10, 50, last) if (last - first) / step <= 12)
    ticks = [length for length in range(first, last + 1) if length % step == 0]
    bases = "bases" if len(each.bases) > 1 else "seeds"
    parts = [*split_marks(each, x, height),
             *axes(x, y, ticks, f"length (line: mean over {bases}; band: lowest to highest)")]
    for method, look in looks.items():
        line = sorted(values[method].items())
        edge = [(x(at), y(max(bases))) for at, bases in line]
        edge += [(x(at), y(min(bases))) for at, bases in reversed(line)]
        parts.append(element("polygon", points=points(edge), fill=look.colour, opacity=0.12))
    title = f"{each.task}: {each.claim.metric} at each length"
    return picture(width, TOP + height + 52, title, parts + lines(x, y, values, looks))


def dial_values(found: list[Experiment]) -> Values:
    """Far OOD accuracy against P of generation-P: for each method and P, the value of each base."""
    values = {method: {} for method in DIAL_METHODS}
    for method, each in product(DIAL_METHODS, found):
        if match := re.fullmatch(r"generation(?:-([\d.]+))?", each.task):
            far = each.splits.get("far OOD", [])
            if bases := by_base(each.observed(method, "accuracy", far)):
                values[method].setdefault(float(match[1] or 0.5), bases)  # the first experiment's
    return {method: line for method, line in values.items() if line}


def dial(found: list[Experiment]) -> str:
    """A line for each method, a dot for each base; "" for fewer than two P."""
    values = dial_values(found)
    ticks = sorted({at for line in values.values() for at in line})
    if len(ticks) < 2:
        return ""
    one = next(each for each in found if each.task.startswith("generation"))
    looks, (width, height) = styles(one.claim.proposed, values), size(values)
    x = scale(ticks[0] - 0.02, ticks[-1] + 0.02, LEFT, LEFT + WIDTH)
    y = scale(0, 1, TOP + height, TOP)
    parts = axes(x, y, ticks, "probability that the text of pre-training restates its rule")
    parts += [element("circle", cx=x(at), cy=y(base), r=3.5, opacity=0.5, fill=looks[method].colour)
              for method in looks for at, bases in values[method].items() for base in bases]
    title = f"Generation: accuracy far OOD, equations {span(one.splits['far OOD'])}"
    return picture(width, TOP + height + 52, title, parts + lines(x, y, values, looks))


def dot_row(x: Scale, y: float, each: Difference) -> list[str]:
    """The interval as a bar, the mean as a stroke, and the pairs, those of a base at one height."""
    (low, high), mean = interval(each.values), fmean(each.values)
    bases = list(dict.fromkeys(base for base, _ in each.pairs))
    level = scale(-1, len(bases), y - ROW / 2, y + ROW / 2)
    dots = [element("circle", cx=x(value), cy=level(bases.index(base)), r=3, fill="#d55e00",
                    stroke="#ffffff", stroke_width=0.6)
            for (base, _), value in each.pairs.items()]
    return [text(28, y + 4, f"{each.ours} - {each.theirs}"),
            element("rect", x=x(low), y=y - 10, width=x(high) - x(low), height=20, rx=3,
                    fill="#0072b2", opacity=0.28),
            segment(x(mean), y - 13, x(mean), y + 13, "#0072b2", stroke_width=3), *dots,
            text(x(1) + 16, y + 4, f"{mean:+.2f}"),
            text(x(1) + 62, y + 4, each.verdict,
                 font_weight="bold" if each.verdict == "reproduced" else "normal")]


def dot_plot(found: list[Experiment]) -> str:
    """The differences of all claims, task by task; "" where there are none."""
    blocks = []
    for each, compared in differences(found).items():
        if compared:
            lengths = span(each.splits[each.claim.split])
            blocks.append((f"{each.task}: {each.claim.metric} {each.claim.split} {lengths}",
                           compared))
    if not blocks:
        return ""
    every = [each for _, compared in blocks for each in compared]
    lowest = min(min([interval(each.values)[0], *each.pairs.values()]) for each in every)
    fifths = range(min(-1, floor(5 * lowest)), 6)
    left = 52 + 8 * max(len(f"{each.ours} - {each.theirs}") for each in every)
    x, y, parts = scale(fifths[0] / 5, 1, left, left + WIDTH), 44, []
    for heading, compared in blocks:
        top, bottom = y + ROW, y + ROW * (len(compared) + 1)
        parts.append(text(16, y + 26, heading, font_weight="bold"))
        parts += [segment(x(fifth / 5), top, x(fifth / 5), bottom,
                          "#dddddd" if fifth else "#222222") for fifth in fifths]
        for row, each in enumerate(compared):
            parts += dot_row(x, top + ROW * (row + 0.5), each)
        y = bottom
    parts += [text(x(fifth / 5), y + 18, f"{fifth / 5:.1f}", text_anchor="middle")
              for fifth in fifths]
    parts.append(text(left + WIDTH / 2, y + 40, "dot: a base and seed; stroke: mean; bar: 95 % "
                      "interval of the mean", text_anchor="middle"))
    return picture(left + WIDTH + 180, y + 54, "Paired differences", parts)


def write(found: list[Experiment], folder: Path) -> list[Path]:
    """All pictures for which there are rows; ``TASK-again.svg`` of a second experiment."""
    pictures = {}
    for each in found:
        name = each.task
        while name in pictures:
            name += "-again"
        pictures[name] = curves(each)
    pictures |= {"differences": dot_plot(found), "dial": dial(found)}
    paths = {folder / f"{name}.svg": svg for name, svg in pictures.items() if svg}
    folder.mkdir(parents=True, exist_ok=True)
    for path, svg in paths.items():
        path.write_text(svg, encoding="utf-8")
    return list(paths)
