"""docs/explore.html against latent_tokens.py and tasks.py, in a real browser where there is one."""

import json
import random
import re
import shutil
import subprocess

import pytest
import torch

from extras import explore
from latent_tokens import AugmentedRow, Placement, UserError, make_batch
from tasks import ALPHABET, Claim, Example, TASKS, encode

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here")
PAGE = explore.PAGE.read_text(encoding="utf-8")
TASK = TASKS["generation"]
NOTATIONS = """
    constructor_2 __proto___2 toString_1 valueOf,Start_1 undefined_1 Start_1٣ ٣_1 ²_1 Start_² 😀_1
    Start_01 Start_0 0_1 01_1 Comma_999 Comma_1000 999_1 1000_1 1e2_1 1.0_1 1_1+1_2 Start,Start_1
    Comma,1_1+1_2 + Start_1+ +Start_1 Start_1++End_1 ,Start_1 Start,_1 _1 Start_ Start 1 Start_1_2
    start_1 Ｓtart_1 Start_1\u0301 Start_😀 -own Comma_1-OWN Comma_1-own Comma_1-own-own Comma_1own
    8_2+10_1+9_1 10,8,9_1 End,Start_2 Comma_2+8,End_1+Start_1 Comma_4-latest Comma_4-own-latest
    Comma_4-latest-own Comma_4-latest-latest -latest""".split()
NOTATIONS += ["", " Start_1", "Start_1 ", "Start_1\n", "Start_1\xa0"]
QUERIES = ["", " ", "1 2", "1\t2", "😀", "1😀", "é", "e\u0301", "A", "١", "，", "\ud83d", "1\0", "x"]
PIECES = "Start End Comma 1 8 10 0 ٣ _ _ , + -own _1 _2".split()
IN_THE_PAGE = """<script>
document.body.append(Object.assign(make("pre", JSON.stringify({
  scores: CASES.texts.map(each => score(...each).map(({wrong}) => wrong === "")),
  rows: CASES.rows.map(([notation, query, response]) => {
    try {
      const slots = augment(parsePlacement(notation), query, response), fed = [];
      for (const slot of slots) fed[slot.step] = (fed[slot.step] || 0) + 1;
      return {sources: slots.map(slot => slot.source), positions: slots.map(slot => slot.position),
              reads: slots.flatMap((slot, index) => slot.predicts ? [index] : []), fed};
    } catch (error) { return error.name; }
  })})), {id: "checked"}));
</script>"""


def dumped(page: str, path) -> str:
    """The page's elements once its script has run."""
    path.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--no-first-run", f"--user-data-dir={path.parent / 'user'}", "--dump-dom"]
    return subprocess.run([BROWSER, *flags, path.as_uri()],
                          capture_output=True, text=True, timeout=60).stdout


def random_row(rng: random.Random) -> tuple[str, str, str]:
    places = rng.sample(["Start", "End", "Comma", "1", "2", "3", "5", "8"], rng.randint(1, 4))
    cut = rng.randint(1, len(places))
    terms = [",".join(part) + f"_{rng.randint(1, 3)}" for part in (places[:cut], places[cut:])
             if part]
    notation = "+".join(terms) + rng.choice(["", "", "-own"]) + rng.choice(["", "-latest"])
    query, response = ("".join(rng.choices("12,,", k=length)) for length in (
        rng.randint(1, 9), rng.randint(0, 9)))
    return notation, query, response


def in_python(notation: str, query: str, response: str) -> dict | str:
    """What the page must find: a row, where it is read, and how many slots each step feeds."""
    try:
        placement, fed = Placement.parse(notation), []
        row = AugmentedRow(placement, encode(query))
        for token_id in encode(response):
            fed.append(len(row.take_new_slots()[0]))
            row.append(token_id)
    except (KeyError, ValueError):
        return "Error"
    reads = response and make_batch(placement, [encode(query)], [encode(response)]).read_slots[0]
    return {"sources": row.sources, "positions": row.position_ids, "reads": [*map(int, reads)],
            "fed": [*fed, len(row.take_new_slots()[0])]}


def spoiled(rng: random.Random) -> tuple[str, str]:
    """A query and an answer with wrong results and signs, equations left out, repeated and cut."""
    items = [rng.choice(["00@00=00", *[TASK.example(rng, 1).query] * 4])]
    for _ in range(10):
        item = rng.choice([TASK.after(items[-1]) or items[-1]] * 50 + [items[-1], "", items[0]])
        place = rng.choice([*[6, 7] * 4, *[99] * 20, rng.randrange(9)])  # of a sign, 99: of none
        items.append(item[:place] + rng.choice("0123456789@=;") * (place < 9) + item[place + 1:])
    return items[0], ("," + ",".join(items[1:]))[:rng.choice([99, 99, 70, 0])]


@in_a_browser
def test_rows_and_scores_of_the_page_that_are_not_pythons(tmp_path):
    rng = random.Random(0)
    rows = [random_row(rng) for _ in range(200)]
    rows += [("".join(rng.choices(PIECES, k=rng.randint(2, 6))), "1,2", "3,4") for _ in range(300)]
    rows += [(notation, "1,2", "3,4") for notation in NOTATIONS]
    rows += [case for text in QUERIES for case in (("Comma_1", text, "1"), ("Comma_1", "1", text))]
    expected = [in_python(*row) for row in rows]
    assert 100 < expected.count("Error") < 400 and f'"{ALPHABET}"' in PAGE
    texts = [spoiled(rng) for _ in range(500)] + [("1,2", ",3"), ("44@47=83", "1"), ("", "")]
    true = [[bool(score.accuracy) for score in TASK.score(Example(query, "," * 10), text).values()]
            for query, text in texts]
    assert 0.2 < sum(map(sum, true)) / 5000 < 0.8  # of each kind enough
    cases = json.dumps({"rows": rows, "texts": [(*each, 10) for each in texts]})
    dom = dumped(PAGE + IN_THE_PAGE.replace("CASES", cases), tmp_path / "page.html")
    found = json.loads(re.search(r'<pre[^>]*id="checked">(.*?)</pre>', dom)[1])
    assert list(zip(rows, found["rows"])) == list(zip(rows, expected))
    assert list(zip(texts, found["scores"])) == list(zip(texts, true))


@in_a_browser
def test_a_page_that_does_not_open_complete_and_at_the_first_mistake(tmp_path):
    dom = dumped(PAGE, tmp_path / "page.html")
    data, firsts = json.loads(PAGE.split(explore.OPEN)[1].split(explore.CLOSE)[0]), []
    for name, answer in data["answers"].items():
        scores = TASK.score(Example(data["query"], data["response"]), answer["text"]).values()
        in_a_row, right = (sum(getattr(score, field) for score in scores)
                           for field in ("exact", "accuracy"))
        assert (f"{name}: still right after {in_a_row} equations; right in all: {right:.0f} of "
                f"{len(scores)}<") in dom
        firsts += [k for k, pair in enumerate(zip(answer["text"], data["response"]))
                   if len({*pair}) > 1][:1]
    heads = torch.tensor(answer["attention"]["shares"]).flatten(0, 1)  # (L * H, equations, places)
    dark = (heads[heads.sum((1, 2)).argmax()] >= 95).all(dim=0).sum()
    assert f"token {min(firsts, default=0) + 1} of " in dom and f"{name} {dark}.<" in dom
    table = re.search(r'<table id="slots".*?</table>', dom, flags=re.DOTALL)[0]
    assert table.count("&lt;C&gt;") == 8 and 'id="error" class="error" role="alert"></p>' in dom


def test_a_page_of_another_run_or_task_or_too_large(finished, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(explore, "PAGE", tmp_path / "page.html")
    run = explore.Run.open(explore.make_parser("explore", "").parse_args([str(finished)]))
    monkeypatch.setattr(type(run.task), "claim", Claim(("Comma_1",), ("Start_2",)))
    explore.main([str(finished)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(page.split(explore.OPEN)[1].split(explore.CLOSE)[0])
    assert list(data["answers"]) == ["Start_2", "Comma_1"]
    assert data["about"].startswith("Base 60") and "mistake by none" in data["about"]
    before = json.loads(PAGE.split(explore.OPEN)[1].split(explore.CLOSE)[0])
    assert explore.fill(page, before) == PAGE
    assert PAGE.count("\n") <= 330 and len(PAGE) < 300_000
    assert not re.search(r'(src|href)="|https?://|@import', PAGE)  # nothing from elsewhere
    monkeypatch.setattr(type(run.task), "name", "another")
    with pytest.raises(UserError, match="Generation"):
        explore.collect(run, 0)
