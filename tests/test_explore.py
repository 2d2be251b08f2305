"""docs/explore.html against latent_tokens.py, in a real browser where there is one."""

import json
import random
import re
import shutil
import subprocess

import pytest

from extras import explore
from latent_tokens import AugmentedRow, Placement, make_batch
from tasks import Claim, encode

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here")
PAGE = explore.PAGE.read_text(encoding="utf-8")


def dumped(page: str, path) -> str:
    """The page's elements once its script has run."""
    path.write_text(page, encoding="utf-8")
    return subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                           path.as_uri()], capture_output=True, text=True, timeout=60).stdout


def random_case(rng: random.Random) -> tuple[str, str, str]:
    places = rng.sample(["Start", "End", "Comma", "1", "2", "3", "5", "8"], rng.randint(1, 4))
    cut = rng.randint(1, len(places))
    terms = [",".join(part) + f"_{rng.randint(1, 3)}" for part in (places[:cut], places[cut:])
             if part]
    notation = "+".join(terms) + rng.choice(["", "", "-own"])
    query, response = ("".join(rng.choices("12,,", k=length)) for length in (
        rng.randint(1, 9), rng.randint(1, 9)))
    return notation, query, response


def in_python(notation: str, query: str, response: str) -> dict:
    """What the page must find: a row, where it is read, and how many slots each step feeds."""
    placement, fed = Placement.parse(notation), []
    batch = make_batch(placement, [encode(query)], [encode(response)])
    row = AugmentedRow(placement, encode(query))
    for token_id in encode(response):
        fed.append(len(row.take_new_slots()[0]))
        row.append(token_id)
    return {"sources": row.sources, "positions": row.position_ids,
            "reads": batch.read_slots[0].tolist(), "fed": [*fed, len(row.take_new_slots()[0])]}


@in_a_browser
def test_rows_of_the_page_that_are_not_pythons(tmp_path):
    rng = random.Random(0)
    cases = [random_case(rng) for _ in range(200)]
    dom = dumped(explore.fill(PAGE, {"cases": cases}), tmp_path / "page.html")
    found = json.loads(re.search(r'<pre[^>]*id="checked">(.*?)</pre>', dom)[1])
    assert [one | {"case": case} for one, case in zip(found, cases)] == [
        in_python(*case) | {"case": case} for case in cases]


@in_a_browser
def test_a_page_whose_panels_are_empty(tmp_path):
    dom = dumped(PAGE, tmp_path / "page.html")
    table = re.search(r'<table id="slots".*?</table>', dom, flags=re.DOTALL)[0]
    assert table.count("&lt;C&gt;") == 4 and "Comma_4 on " in dom
    assert dom.count("equation ") >= 24 and 'id="error" class="error" role="alert"></p>' in dom


def test_a_page_of_another_run_or_too_large(finished, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(explore, "PAGE", tmp_path / "page.html")
    run = explore.Run.open(explore.make_parser("explore", "").parse_args([str(finished)]))
    monkeypatch.setattr(type(run.task), "claim", Claim(("Comma_1",), ("Start_2",)))
    explore.main([str(finished)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(page.split(explore.OPEN)[1].split(explore.CLOSE)[0])
    assert list(data["answers"]) == ["Start_2", "Comma_1"]
    assert data["about"].startswith("Below: base 0")
    before = json.loads(PAGE.split(explore.OPEN)[1].split(explore.CLOSE)[0])
    assert explore.fill(page, before) == PAGE
    assert PAGE.count("\n") < 400 and len(PAGE) < 300_000
    assert not re.search(r'(src|href)="|https?://|@import', PAGE)  # nothing from elsewhere
