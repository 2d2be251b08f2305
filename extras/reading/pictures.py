"""The pictures that ``extras.report --svg`` writes, without a plotting library.

    {task}.svg       the claim's first metric at each length, a line for each method
    losses.svg       the losses of each pre-training and each tuning

An SVG is text: ``<polyline points="40,20 60,80"/>`` is a line, and y grows downwards. The white
ground keeps it readable on a dark page; widths and dashes tell the lines apart in grey print.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from html import escape
from itertools import cycle, pairwise, product
from math import log10
from pathlib import Path
from statistics import fmean

from extras.experiments import Experiment
from extras.tables import span
from latent_tokens import UserError
from model import GPT

LEFT, TOP, WIDTH, HEIGHT = 52, 64, 480, 280  # the plot area, in pixels
GAP = 17  # from one label to the next

Scale = Callable[[float], float]  # data to pixels

# Colour, width and dashes of a line.
REFERENCES = {"base": ("#777777", 1.5, "1 4"), "instruction": ("#333333", 1.5, "9 4"),
              "reminders": ("#111111", 1.5, "none")}
PROPOSED = ("#0072b2", 5, "none"), ("#56b4e9", 3.5, "9 5")
OTHERS = ("#d55e00", 2.2, "7 3"), ("#a03c8c", 2.2, "2 3"), ("#8a6d00", 2.2, "9 3 2 3")


def styles(each: Experiment) -> dict[str, tuple[str, float, str]]:
    """Proposed methods are bold, references thin; in the order of drawing, thin ones on top."""
    proposed, others = cycle(PROPOSED), cycle(OTHERS)
    chosen = {method: REFERENCES.get(method)
              or next(proposed if method in each.about.claim.proposed else others)
              for method in each.methods}
    return dict(sorted(chosen.items(), key=lambda item: -item[1][1]))


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


def frame(each: Experiment, x: Scale, y: Scale) -> list[str]:
    """The splits, a grey ground where latents are tuned, a grid of fifths, and some lengths."""
    parts, bottom = [], y(0)
    for name, tested in each.splits.items():
        start, stop = x(tested[0] - 0.5), x(tested[-1] + 0.5)
        parts += [element("rect", x=start, y=TOP, width=stop - start, height=bottom - TOP,
                          fill="#eeeeee")] * (name == "ID")
        parts += [segment(start, TOP - 20, start, TOP, "#999999"),
                  text(start + 5, TOP - 8, f"{name} {span(tested)}", font_size=12)]
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts += [segment(LEFT, y(share), LEFT + WIDTH, y(share), "#dddddd"),
                  text(LEFT - 8, y(share) + 4, f"{share}", text_anchor="end")]
    step = 1 + (each.lengths[-1] - each.lengths[0]) // 12
    parts += [text(x(length), bottom + 19, str(length), text_anchor="middle")
              for length in each.lengths if length % step == 0]
    name = each.about.length_name.removesuffix("s {}").format("").strip(" =")  # equation
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


def curves(each: Experiment, metric: str = "") -> str:
    """A metric (the claim's first) at each length: for each method its mean, faint its bases."""
    looks, margin, metric = styles(each), LEFT + WIDTH + 24, metric or each.about.claim.metrics[0]
    height = max(HEIGHT, GAP * len(looks))
    x = scale(each.lengths[0] - 0.5, each.lengths[-1] + 0.5, LEFT, LEFT + WIDTH)
    y, bases, means = scale(0, 1, TOP + height, TOP), defaultdict(list), defaultdict(list)
    for method, length in product(looks, each.lengths):
        values = each.by_base(method, metric, [length])
        for base, value in values.items():
            bases[method, base].append((x(length), y(value)))
        if values:
            means[method].append((x(length), y(fmean(values.values()))))
    parts = frame(each, x, y) + [
        element("polyline", points=points(line), fill="none", stroke=looks[method][0], opacity=0.3)
        for (method, _), line in bases.items() if method not in REFERENCES]
    labels = spread([line[-1][1] for line in means.values()], y(0))
    one = "base" if len({row["base_checksum"] for row in each.rows}) > 1 else "seed"
    for (method, line), label in zip(means.items(), labels):
        colour, width, dashes = looks[method]
        parts += [element("polyline", points=points(line), fill="none", stroke=colour,
                          stroke_width=width, stroke_dasharray=dashes),
                  element("circle", cx=line[-1][0], cy=line[-1][1], r=1.5 + width / 2, fill=colour),
                  segment(*line[-1], margin - 4, label, colour, stroke_width=0.8),
                  text(margin, label + 4, method, fill=colour,
                       font_weight="bold" if method in each.about.claim.proposed else "normal")]
    return picture(margin + 16 + 9 * max(map(len, looks)), TOP + height + 52,
                   f"{each.task}: {metric}, mean over {one}s (faint: each {one})", parts)


def loss_curves(runs: list[tuple[str, list[list[float]]]]) -> str:
    """Small pictures, each with a name and its lines, on one logarithmic scale from 10 to 0.001."""
    parts, width, height, gap = [], 240, 110, 50
    for index, (name, lines) in enumerate(runs):
        left, top = 56 + (width + gap) * (index % 3), 66 + (height + gap) * (index // 3)
        steps = max(map(len, lines))
        x, y = scale(0, steps, left, left + width), scale(1, -3, top, top + height)
        parts.append(text(left - 40, top - 8, f"{name}: {10 * steps} steps", font_size=10))
        for power in (1, 0, -1, -2, -3):
            parts += [segment(left, y(power), left + width, y(power), "#dddddd"),
                      text(left - 6, y(power) + 4, f"{10.0 ** power:g}", text_anchor="end",
                           font_size=10)]
        parts += [element("polyline", fill="none", stroke=colour, points=points(
            (x(step), y(min(1, max(-3, log10(loss))))) for step, loss in enumerate(line) if loss))
            for line, colour in zip(lines, cycle(("#0072b2", "#d55e00", "#8a6d00", "#777777")))]
    return picture(56 + 3 * (width + gap), top + height + gap, "Losses, at every tenth step", parts)


def losses(folders: list[Path], rows: list[dict]) -> list[tuple[str, list[list[float]]]]:
    """Name and lines of each base in these folders, and of each tuning, a line for each start."""
    runs = []
    for path in (path for folder in folders for path in sorted(folder.glob("*-base*.pt"))):
        with suppress(ValueError):  # a damaged base
            runs.append((path.stem, [GPT.load(path).notes.get("losses", [])]))
    runs += [("{task}-base{base}, {method}, {seed}".format(**row),
              [start.get("losses", []) for start in row.get("starts", [])]) for row in rows]
    return [(name, lines) for name, lines in runs if any(lines)]


def write(found: list[Experiment], folder: Path, paths: list[Path]) -> None:
    """All pictures for which there are rows. Raises UserError where two would have one name."""
    svgs = {each.task: curves(each) for each in found}
    if len(svgs) < len(found):
        raise UserError("one task with several settings: draw one experiment at a time")
    if runs := losses(paths, [row for each in found for row in each.rows]):
        svgs["losses"] = loss_curves(runs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in svgs.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"wrote {folder / name}.svg")
