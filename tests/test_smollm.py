"""extras/more/smollm.py: its tasks, and its rows on a tiny random Llama whose tokens are letters.
What needs a model is skipped without ``transformers``."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from extras import report, smollm
from extras.claims import holm, sign_flip
from extras.experiments import experiments, read
from extras.smollm import END, RATES, TASKS, VERBS, Base, draw, teacher_forced, with_opening
from extras.tables import mean_and_sd
from latent_tokens import Placement, generate
from tasks import Example, Score
from train import RESULTS, read_results

DOCS = Path(__file__).parents[1] / "docs"


class Letters:
    def __len__(self):
        return 128

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def decode(self, token_ids, **options):
        return "".join(map(chr, token_ids))


@pytest.fixture(scope="module")
def base():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=128, hidden_size=16, intermediate_size=16,
                                      num_hidden_layers=1, num_attention_heads=2,
                                      initializer_range=0.5)
    return Base(transformers.LlamaForCausalLM(config), Letters())


def test_the_examples_of_the_docstrings():
    assert TASKS["down3"].example("71", 3) == ("71,", "68,65,62")
    query, response = TASKS["past"].example(0, 4)
    verbs = query.removesuffix(" ->").split(", ")
    assert len(set(verbs)) == 4 and response == f" {', '.join(VERBS[verb] for verb in verbs)}\n"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_that_a_true_answer_does_not_get_or_an_empty_one_does(task):
    for example in draw(task, "test", task.test_lengths, task.test_examples, 0):
        assert {*task.score(example, example.response).values()} == {Score(1.0, True)}
        assert {*task.score(example, "").values()} == {Score(0.0, False)}


def test_one_wrong_item():
    task = TASKS["down3"]
    scores = task.score(task.example("71", 4), "68,65,61,59")
    assert [*scores.values()] == [(1, True), (1, True), (0, False), (1, False)]
    task, example = TASKS["past"], Example("go, eat ->", " went, ate\n")
    assert task.score(example, " went, eat\n") == task.score(example, " went, ate") == {
        2: (0.5, False)}  # no stop
    assert task.score(example, " went, ate, saw\n") == {2: (0.5, False)}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_queries_that_are_tuned_on_and_tested(task):
    longest = [max(task.test_lengths)]
    queries = {purpose: {example.query for example in draw(task, purpose, longest, 1000, 0)}
               for purpose in ("tune", "validation", "test")}
    counted = (sum if task.apart else max)(map(len, queries.values()))
    assert counted == len(set.union(*queries.values())) == len(task.subjects)
    assert draw(task, "test", [5], 9, 0) != draw(task, "test", [5], 9, 1)


def test_openings():
    task, asked = TASKS["past"], [Example("go, eat ->", " went, ate\n")]
    assert with_opening(task, "base", asked, 0) == asked
    for method in "instruction", "examples":
        (query, response), = with_opening(task, method, asked, 0)
        assert query.endswith(END + asked[0].query) and response == asked[0].response
    assert query.count("->") == query.count(END) + 1 == 4


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_an_opening_that_tells_a_tests_answers(task):
    tests = draw(task, "test", task.test_lengths, task.test_examples, 0)
    opened, *_ = with_opening(task, "examples", tests, 0)
    lines = opened.query.splitlines()[:3]
    assert len({*lines}) == 3 and not [
        query for query, _ in tests for line in lines if line.startswith(query)]


@pytest.mark.parametrize("choices, right", [
    ("68,65,62", [True] * 3), ("68,65,72", [True, True, False]), ("68;65,62", [False, True, True])])
def test_items_that_are_judged_without_their_comma(base, monkeypatch, choices, right):
    choices = torch.nn.functional.one_hot(torch.tensor([base.encode(choices)]), 128)
    monkeypatch.setattr(smollm, "response_logits", lambda *given: choices)
    task = TASKS["down3"]
    forced = teacher_forced(base, task, base.nothing, task.example("71", 3))
    assert forced == dict(zip([1, 2, 3], right))


def test_that_forced_logits_are_those_of_decoding(base):
    task = SimpleNamespace(score=lambda example, text: [1])
    own, = generate(base, base.nothing, [base.encode("71,")], 9)
    for answer, right in (own, True), ([*own[:8], own[8] ^ 1], False):
        example = Example("71,", base.tokenizer.decode(answer))
        assert list(teacher_forced(base, task, base.nothing, example).values()) == [right]


def test_rows_that_are_done_again_or_that_the_report_does_not_read(base, tmp_path, monkeypatch,
                                                                   capsys):
    monkeypatch.setattr(smollm, "load", lambda: base)
    for task in TASKS:
        monkeypatch.setattr(TASKS[task], "test_examples", 20)
        for _ in range(2):
            smollm.main(["--tasks", task, "--methods", "base", "Comma_1-own-latest", "--steps", "2",
                         "--seeds", "100", "--out", str(tmp_path)])
    rows = read_results(tmp_path / RESULTS)
    assert [(row["task"], row["method"]) for row in rows] == [
        (task, method) for task in TASKS for method in ("base", "Comma_1-own-latest")]
    for row in rows:
        assert len(row["forced"]) == len(row["lengths"]) and len(row["answers"]) >= 18
    assert [row["inserted"] for row in rows] == [0, 20, 0, 38]  # commas, also of a query
    for option in ["--steps", "3"], ["--weight-decay", "0.5"], ["--rate", "0.5"]:  # own files
        smollm.main(["--methods", "Comma_1-own-latest", "--seeds", "100", "--steps", "2",
                     "--out", str(tmp_path / "s"), *option])
    assert len(list((tmp_path / "s" / "latents").iterdir())) == 3
    capsys.readouterr()
    report.main([str(tmp_path)])
    assert capsys.readouterr().out.count("| `Comma_1-own-latest` | 1 | 16 |") == len(TASKS)


def test_that_the_methods_of_the_protocol_are_placements():
    assert all(str(Placement.parse(method)) == method for task in TASKS for method in RATES[task])


def test_figures_of_the_page_or_of_the_readme_that_are_of_other_rows():
    page, readme = (" ".join((DOCS / name).read_text(encoding="utf-8").split()) for name in (
        "smollm.md", "../README.md"))
    beyond, third = {}, {}
    for name in "smollm", "smollm_past", "smollm3":
        found = experiments(read([DOCS / "results" / f"{name}.jsonl"]))[0]
        for method in [each for each in found.methods if each in RATES[found.task]]:
            cells = [mean_and_sd(found.by_base(method, metric, found.splits[split]).values())
                     for metric, split in (("exact", "ID"), ("exact", "OOD"), ("exact", "far OOD"),
                                           ("forced", "OOD"), ("forced", "far OOD"))]
            cells = [cell if index in (1, 3) else cell[:4] for index, cell in enumerate(cells)]
            assert f"| `{method}` | {' | '.join(cells)} |" in page
            beyond[f"{name} {method}"] = cells[1][:4]
            third[method] = found.by_base(method, "exact", found.splits["OOD"])
    for said in ("{smollm Comma_4} exact beyond the lengths tuned on, `Start_4` {smollm Start_4};",
                 "second task {smollm_past Comma_4}, `Start_4` {smollm_past Start_4} (",
                 "ours has {smollm3 Comma_4-own-latest}, `Start_4` {smollm3 Start_4} (third"):
        assert said.format(**beyond) in readme
    ours = third["Comma_4-own-latest"]
    p_values = holm([sign_flip([ours[seed] - third[start][seed] for seed in ours])
                     for start in ("Start_4", "Start_4-own")])
    assert all(f"(p = {p:.3f}" in page for p in p_values)
