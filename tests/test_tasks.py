"""Tasks against hand-worked examples; scoring against answers with known mistakes."""

from collections import Counter
import re

import pytest

from latent_tokens import Placement, count_latents
from model import GPTConfig
from tasks import (ALPHABET, TASKS, Example, check_length, decode, documents, encode,
                   equation_result, examples, pretraining_batches, random_source, show)

generation, repetition, summation = TASKS.values()
SHARES = {"generation": 0.5, "repetition": 0.25, "summation": 0.25}


def test_the_papers_own_chain():
    """The chain that the paper prints: 44@47=83,47@83=34,83@34=21. Bug caught: another rule."""
    assert equation_result("+-9", "44", "47") == "83"
    assert equation_result("+-9", "47", "83") == "34"
    assert equation_result("+-9", "83", "34") == "21"
    assert equation_result("x+0", "44", "47") == "61"  # 4 * 4 mod 10, (4 + 7) mod 10
    example = Example("44@47=83,", "47@83=34,83@34=21,", "G+-9:")
    assert all(score.accuracy and score.exact
               for score in generation.score(example, example.response).values())


def test_generation_documents_do_what_was_said_last():
    """Bug caught: a rule that goes unheeded in the text, or operands that are not the last two."""
    rng, said_early, lengths = random_source("pretrain", 1), 0, []
    for _ in range(1000):
        text, rule, before = generation.document(rng), "++0", None
        equations = re.findall(r"(?:G(...):)?(\d\d)@(\d\d)=(\d\d),", text)
        assert text.count("@") == len(equations) and text.endswith(",;")
        for said, left, right, result in equations:
            rule = said or rule
            assert before is None or before == (left, right)
            assert result == equation_result(rule, left, right)
            before = right, result
        said_early += text.startswith("G")
        lengths.append(len(equations))
    assert 500 < said_early < 620 and 4.5 < sum(lengths) / 1000 < 5.5


def test_one_slip_costs_one_equation_but_all_exactness_after_it():
    """Bug caught: a score against the true chain, in which everything after a slip is wrong, or
    one that forgives wrong operands."""
    example = Example("44@47=83,", "47@83=34,83@34=21,34@21=53,21@53=74,", "G+-9:")
    slipped = "47@83=33,83@33=20,33@20=53,21@53=74,"  # 33 should be 34; then true to what it wrote,
    scores = generation.score(example, slipped)  # but for the last: its operands are not 20 and 53
    assert [scores[k].accuracy for k in (1, 2, 3, 4)] == [0, 1, 1, 0]
    assert [scores[k].exact for k in (1, 2, 3, 4)] == [False] * 4
    short = generation.score(example, "47@83=34,8")
    assert [short[k].accuracy for k in (1, 2, 3, 4)] == [1, 0, 0, 0]
    assert [short[k].exact for k in (1, 2, 3, 4)] == [True, False, False, False]


def test_repetition_wants_every_item_and_the_stop():
    """Bug caught: an answer that never stops, or stops early, called exact; a count off by one."""
    row = Example("4@7=2*03>", "7@4=2*03,7@4=2*02,7@4=2*01,7@4=2*00;", "Rs0:")
    for text, accuracy, exact in [(row.response, 1.0, True),
                                  (row.response.replace(";", ","), 1.0, False),
                                  (row.response.replace(";", ",7@4=2*99;"), 1.0, False),
                                  (row.response.replace("2*01", "3*01"), 0.75, False),
                                  ("7@4=2*03;", 0.25, False)]:
        score = repetition.score(row, text)[2]
        assert (score.accuracy, score.exact) == (accuracy, exact)
    drawn = repetition.example(random_source("test", 0), 3)
    a, b, result = (int(drawn.query[place]) for place in (0, 2, 4))
    item = f"{b}@{a}={result}"
    assert result == (a + b) % 9 and a != b and drawn.query[5:] == "*04>"
    assert drawn.response == f"{item}*04,{item}*03,{item}*02,{item}*01,{item}*00;"


def test_repetition_documents_do_what_was_said_last():
    """Bug caught: a rule that goes unheeded in the text, so that the base learns to ignore it; one
    said again under way, so that the first does as well; rare counts, which a base does not learn.
    """
    rng, counts = random_source("pretrain", 1), Counter()
    for _ in range(2000):
        text = repetition.document(rng)
        digits, count = re.search(r"(\d@\d=\d)\*(\d\d)>", text).groups()
        rule, number = "c1", int(count)
        for said, item in re.findall(r"(?:R(..):)?(?:[^;,>]*>)?(\d@\d=\d\*\d\d)[,;]", text):
            under_way = 0 < number < int(count)
            assert not (said and under_way) or (said[0] == rule[0] and said[1] != rule[1])
            rule = said or rule
            swapped = re.sub(r"(.)@(.)", r"\2@\1", digits)
            assert item == f"{swapped if rule[0] == 's' else digits}*{number:02d}"
            number -= 1
        assert number + 1 == int(rule[1]) and text.count(";") == 1
        counts[int(count)] += 1
    assert min(counts[n] for n in range(1, 23)) > 50  # about 91 each


def test_summation_documents_do_what_was_said_last():
    """Bug caught: answers of another rule or another list."""
    rng = random_source("pretrain", 1)
    for _ in range(500):
        text = summation.document(rng)
        listed, asked = text.rstrip(";").split("?")
        values = dict(re.findall(r"([a-z])=(\d)", listed))
        rule = ["-", *re.findall(r"S(.):", listed)][-1]
        for said, names, answer in re.findall(r"(?:S(.):)?([a-z]+)=(\d+)", asked):
            rule = said or rule
            if len(names) == 1:
                assert answer == values[names]
            else:
                a, b = (int(values[name]) for name in names)
                assert int(answer) == {"+": a + b, "-": abs(a - b), "x": a * b}[rule]


def test_summation_adds_what_the_query_asks_for():
    """Bug caught: a wrong variable, or a sum that is not two digits."""
    row = summation.example(random_source("test", 0), 7)
    listing, asked = row.query.split("?")
    values = dict(item.split("=") for item in listing.split(","))
    assert len(values) == 7
    assert row.response == f"{int(values[asked[0]]) + int(values[asked[1]]):02d}"
    assert summation.score(row, row.response)[7].exact
    assert not summation.score(row, "99")[7].exact


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_example_is_whole(task):
    """Bug caught: examples whose own response fails, that do not fit, or lengths in both splits."""
    assert not set(task.id_lengths) & set(task.ood_lengths)
    assert set(task.far_lengths) <= set(task.ood_lengths)
    for row in examples(task, (*task.id_lengths, *task.ood_lengths), "test", 1, 2):
        assert all(score.exact for score in task.score(row, row.response).values())
        assert not any(score.exact for score in task.score(row, "").values())
        assert decode(encode(row.instruction + row.query + row.response)).endswith(row.response)
        assert len(row.instruction + row.query + row.response) <= GPTConfig.context


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_target_rule_is_one_of_those_said_in_pretraining(task):
    """Bug caught: a header that the base has never read, so that the reference means nothing."""
    said = task.example(random_source("test", 0), task.id_lengths[0]).instruction
    rng = random_source("pretrain", 0)
    headers = [task.document(rng)[:len(said)] for _ in range(2000)]
    assert said in headers
    assert len(set(headers)) > 3


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_no_query_serves_two_purposes(task):
    """Bug caught: tests on queries that were tuned or validated on; seeds that do nothing."""
    def queries(purpose, seed=0):
        return [row.query for row in examples(task, task.id_lengths, purpose, seed, 200)]

    assert queries("tune") == queries("tune") != queries("tune", seed=1)
    tuned, validated, tested = (set(queries(purpose)) for purpose in ("tune", "validation", "test"))
    assert not tuned & validated and not tuned & tested and not validated & tested


def test_documents_keep_their_shares():
    """Bug caught: long documents that crowd the others out."""
    written = dict.fromkeys("GRS", 0)
    source = documents(SHARES, random_source("pretrain", 0))
    for _ in range(3000):
        text = next(source)
        kind = "R" if "*" in text else "S" if "?" in text else "G"
        written[kind] += len(text)
    total = sum(written.values())
    assert written["G"] / total == pytest.approx(0.5, abs=0.02)
    assert written["R"] / total == pytest.approx(0.25, abs=0.02)


def test_blocks_continue_one_another():
    """Bug caught: text lost, or targets shifted, where the stream is cut."""
    batches = pretraining_batches(SHARES, random_source("pretrain", 3), rows=4, context=32)
    text = ""
    for _ in range(3):
        blocks = next(batches)
        assert blocks.shape == (4, 33)
        assert blocks[1:, 0].tolist() == blocks[:-1, -1].tolist()
        text += "".join(decode(block[:-1]) for block in blocks)
    source = documents(SHARES, random_source("pretrain", 3))
    whole = "".join(next(source) for _ in range(60))
    assert whole.startswith(text)
    assert set(whole) <= set(ALPHABET)


def test_lengths_that_do_not_fit_are_refused():
    """Bug caught: tests at positions that the base has never seen, called out of distribution."""
    check_length(generation, 24, 352)
    with pytest.raises(ValueError, match="length 40 of generation does not fit.*1 to 24"):
        check_length(generation, 40, 352)
    with pytest.raises(ValueError, match="length 27 of summation does not fit.*2 to 26"):
        check_length(summation, 27, 352)
    for length in (0, 22):  # documents count to 22, which is length 21
        with pytest.raises(ValueError, match=f"length {length} of repetition.*1 to 21"):
            check_length(repetition, length, 352)


def test_the_first_mistake_is_marked():
    """Bug caught: a mark off by one, in the wrong line, or missing where an answer is cut short."""
    row = Example("44@47=83,", "47@83=34,83@34=21,", "G+-9:")
    assert show(row, row.response) == "without a mistake\n    47@83=34,83@34=21,"
    assert show(row, "47@83=34,93@34=21,", width=9) == (
        "first mistake: character 10\n    47@83=34,\n    93@34=21,\n    ^")
    assert show(row, "47@") == "first mistake: character 4\n    47@\n       ^"
    assert show(row, "47@83=34,", width=9).endswith("34,\n    \n    ^")
    assert show(row, row.response + ";").startswith("first mistake: character 19\n")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_controls_insert_as_many_latents_as_the_claimed_method(task):
    """Bug caught: a token-matched baseline with fewer tokens than what it is to match."""
    placement = Placement.parse(task.claimed[0])
    for lengths in (task.id_lengths, task.ood_lengths):
        row = task.example(random_source("test", 0), lengths[-1])
        inserted = count_latents(placement, encode(row.query), encode(row.response))
        assert {f"Start_{inserted}", f"End_{inserted}"} <= set(task.controls)
    assert len({Placement.parse(method).total for method in task.methods}) == 1  # no tilting
