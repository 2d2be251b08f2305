"""Tasks against hand-worked examples; scoring against answers with known mistakes."""

from copy import copy
from itertools import pairwise
import re

import pytest

from model import GPTConfig
from tasks import (ALPHABET, TASKS, TOKEN_ID, Example, Score, check, decode, draw_examples,
                   equation, pretraining_batch, random_source)
from tests.conftest import EVERY_TASK, each_task

generation, repetition, summation = map(TASKS.get, ["generation", "repetition", "summation"])


@pytest.mark.parametrize("rule, left, right, result", [
    ("+-9", "44", "47", "83"), ("+-9", "47", "83", "34"), ("+-9", "83", "34", "21"),
    ("x+0", "44", "47", "61")])  # 4 * 4 mod 10, (4 + 7) mod 10
def test_equations_by_hand(rule, left, right, result):  # the paper's chain, and one more
    assert equation(rule, left, right) == f"{left}@{right}={result}"


@pytest.mark.parametrize("restated", [0.0, 0.3])
def test_generation_documents_do_what_was_stated_last(restated):
    rng, task = random_source("pretrain", 1), copy(generation)
    task.restated = restated
    for _ in range(500):
        text, rule, before = task.document(rng, 1.0), "++0", None
        equations = re.findall(r"(?:G(...):)?(\d\d)@(\d\d)=(\d\d),", text)
        assert text.count("@") == len(equations) and text.endswith(",;")
        for header, left, right, result in equations:
            rule = header or rule
            assert before is None or before == (left, right)
            assert f"{left}@{right}={result}" == equation(rule, left, right)
            before = right, result


def test_generation_text_states_one_rule_at_most_and_never_the_target_rule():
    rng = random_source("pretrain", 1)
    texts = [generation.document(rng, 1.0) for _ in range(5000)]
    assert max(text.count("G") for text in texts) == 1
    headers = {rule for text in texts for rule in re.findall("G(...):", text)}
    assert len(headers) == 53 and headers == set(generation.rules) and "+-9" not in headers
    assert 0.53 < sum(text.startswith("G") for text in texts) / 5000 < 0.6  # 0.75 * 0.75
    assert 4.7 < sum(text.count("@") for text in texts) / 5000 < 5.3
    assert 1.8 < sum(generation.document(rng, 0.0).count("@") for _ in texts) / 5000 < 2.2


@pytest.mark.parametrize("text, accuracy, exact", [
    (",47@83=33,83@33=20,33@20=53,20@53=73", "0111", "0000"),  # a slip, and true to what it wrote
    (",47@83=34,83@33=20,33@20=53,20@53=72", "1000", "1000"),  # an operand that is not copied
    ("47@83=34,83@34=21", "0000", "0000"),  # no comma after the query
    (",83@34=21,34@21=53", "0000", "0000"), (",00@00=00" * 4, "0000", "0000"), ("", "0000", "0000"),
    *((",47@83=34,8" + end, "1000", "1000") for end in ("", ",,", ",8,8"))])
def test_equations_count_as_long_as_they_go_back_to_the_query(text, accuracy, exact):
    scores = generation.score(Example("44@47=83", ",47@83=34,83@34=21,34@21=53,21@53=74"), text)
    assert "".join(f"{scores[k].accuracy:.0f}" for k in (1, 2, 3, 4)) == accuracy
    assert "".join(f"{scores[k].exact:d}" for k in (1, 2, 3, 4)) == exact


@pytest.mark.parametrize("query, response, text, accuracy", [
    ("10@00=10", ",00@10=10,10@10=20", ",00@10=00,10@00=10,00@10=10", [0, 1]),  # the link is kept
    ("40@00=00", ",00@00=00,00@00=00", ",00@00=00,00@00=00", [1, 0])])  # as no query begins
def test_an_equation_that_repeats_the_one_before_is_wrong(query, response, text, accuracy):
    scores = generation.score(Example(query, response), text)
    assert [scores[length].accuracy for length in (1, 2)] == accuracy


def test_no_query_of_generation_begins_a_chain_that_collapses():
    for example in draw_examples(generation, [24], "test", 0, 300):
        assert not {*example.query[:2]} & {*"09"}
        assert all(one != other for one, other in pairwise(example.response.split(",")))


@pytest.mark.parametrize("change, accuracy, exact", [
    (("", ""), 1.0, True), ((";", ","), 1.0, False), ((";", ",4-7=2*99;"), 1.0, False),
    (("2*01", "3*01"), 0.75, False), ((",4-7=2*02,4-7=2*01,4-7=2*00", ""), 0.25, False)])
def test_repetition_wants_every_item_and_the_stop(change, accuracy, exact):
    example = Example("4@7=2*04>", "4-7=2*03,4-7=2*02,4-7=2*01,4-7=2*00;")
    score = repetition.score(example, example.response.replace(*change))[2]
    assert (score.accuracy, score.exact) == (accuracy, exact)


def test_a_repetition_example_by_hand():
    example = repetition.example(random_source("test", 0), 3)
    a, b, result = (int(example.query[place]) for place in (0, 2, 4))
    item = f"{a}-{b}={result}"
    assert result == (a + b) % 9 and example.query[5:] == "*05>"
    assert example.response == f"{item}*04,{item}*03,{item}*02,{item}*01,{item}*00;"


def test_repetition_documents_do_what_was_stated_last():
    rng = random_source("pretrain", 1)
    for _ in range(500):
        text = repetition.document(rng, 1.0)
        left, right, result, count = re.search(r"(.)@(.)=(.)\*(\d\d)>", text).groups()
        number = int(count) - 1
        for header, sign, last in re.findall(
                r"(?:R(..)::)?(?:.@.=.\*..>)?(?:R..::)?\d([+-])\d=\d\*(\d\d)[,;]", text):
            assert int(last) == number
            number -= 1
        rules = re.findall(r"R(..)::", text)
        assert sign == (rules or ["+1"])[-1][0]
        assert number + 1 == int((rules or ["+1"])[-1][1]) or number + 1 == 1
        assert text.count(";") == 1


@pytest.mark.parametrize("progress, counts", [(0.0, range(1, 4)), (1.0, range(1, 22))])
def test_repetition_counts_reach_the_longest(progress, counts):
    rng = random_source("pretrain", 1)
    texts = [repetition.document(rng, progress) for _ in range(1500)]
    assert {int(re.search(r"\*(\d\d)>", text)[1]) - 1 for text in texts} == set(counts)


def test_summation_documents_do_what_was_stated_last():
    rng = random_source("pretrain", 1)
    question_pattern = re.compile(r"(?:S(.):)?([^,>:]+(?:>[^,>:]+)?)(?:>(\d\d))?(?:,|$)")
    for _ in range(300):
        listed, asked = summation.document(rng, 1.0).rstrip(";").split("?")
        values = dict(re.findall(r"([a-z])=(\d)", listed))
        rule = ["-", *re.findall(r"S(.):", listed)][-1]
        for header, question, result in question_pattern.findall(asked):
            rule = header or rule
            if not result:
                assert values[question[0]] == question[2]
            else:
                first, second = question[:2]
                work = f"{first}={values[first]}@{second}={values[second]}"
                assert question == f"{first}{second}>{work}"
                a, b = int(values[first]), int(values[second])
                assert int(result) == {"+": a + b, "-": abs(a - b), "x": a * b}[rule]


def test_the_example_of_the_page_by_hand():  # docs/add_a_task.md
    task = EVERY_TASK["digits"]
    assert [task.item("+9", "472"), task.after("+9", "472=6")] == ["472=6", "726=4"]


@each_task
def test_nothing_but_an_examples_own_response_is_exact(task):
    for example in draw_examples(task, (*task.id_lengths, *task.ood_lengths), "test", 1, 2):
        assert {*task.score(example, example.response).values()} == {Score(1.0, True)}
        assert not all(each.exact for each in task.score(example, example.response[:-1]).values())
        assert not any(each.exact for each in task.score(example, "").values())
    check(task)


@each_task
def test_the_longest_form_fits(task):
    header = task.header(task.target_rule)
    for example in draw_examples(task, [max(task.test_lengths)], "test", 1, 5):
        text = "," + example.query + example.response[:-1]  # nothing is read after the last token
        assert len(text.replace(",", "," + header)) <= GPTConfig(len(ALPHABET)).block_size


@pytest.mark.parametrize("task", [repetition, summation], ids=["repetition", "summation"])
def test_the_target_rule_of_the_others_is_one_of_those_stated_in_pretraining(task):
    header, rng = task.header(task.target_rule), random_source("pretrain", 0)
    headers = {task.document(rng, 1.0)[:len(header)] for _ in range(2000)}
    assert header in headers and len(headers) > 3


@each_task
def test_each_purpose_and_seed_draws_queries_of_its_own(task):
    drawn = {}
    for purpose in ("tune", "validation", "test"):
        first, again, other = (draw_examples(task, task.id_lengths, purpose, seed, 60)
                               for seed in (0, 0, 1))
        assert first == again != other
        drawn[purpose] = {example.query for example in first + other}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values()))


@each_task
def test_rows_are_documents_and_headers_no_targets(task, monkeypatch):
    monkeypatch.setitem(TOKEN_ID, " ", 0)  # a fork's alphabet may have spaces
    rng, again = random_source("pretrain", 3), random_source("pretrain", 3)
    token_ids, targets = pretraining_batch(task, rng, 0.2, 4, 200)
    documents = "".join(task.document(again, 0.2) for _ in range(200))
    assert documents.startswith(decode(token_ids[0]))
    for row, target in zip(token_ids.tolist(), targets.tolist()):
        text = decode(row)
        for index, token_id in enumerate(row[1:]):
            before = text[:index + 2]
            in_header = task.letter in before and ":" not in before[before.rindex(task.letter):-1]
            if in_header or before.endswith("::"):
                assert target[index] == -100
            else:
                assert target[index] == token_id
