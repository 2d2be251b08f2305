"""Seeded random cases: the code against the slow reference that was written from the paper."""

from functools import cache
import random

import pytest
import torch

from latent_tokens import (AugmentedRow, LatentTokens, Placement, generate, make_batch,
                           response_logits, response_loss)
from model import GPT, GPTConfig
from tasks import TOKEN_ID, encode
from tests import reference

COMMA = TOKEN_ID[","]
SEPARATORS = {"Comma": (COMMA,), "Equals": (TOKEN_ID["="],)}
NEW_TOKENS = 12


# ------------------------------------------------------------------------------------------- cases

def random_notation(rng: random.Random, always=()) -> str:
    """One to four groups, in any order, with shared positions or positions of their own."""
    others = ["Start", "End", "Comma", "Equals", *rng.sample(["1", "2", "3", "5", "10"], 2)]
    rng.shuffle(others)
    wheres = [*always, *(where for where in others if where not in always)][:rng.randint(1, 4)]
    rng.shuffle(wheres)
    groups = "+".join(f"{where}_{rng.randint(1, 3)}" for where in wheres)
    return groups + rng.choice(["", "-own"])


def random_tokens(rng: random.Random, least: int, most: int) -> list[int]:
    """Digits and separators, with separators first, last and doubled often enough."""
    return encode("".join(rng.choices("012,=x", (2, 2, 2, 4, 2, 1), k=rng.randint(least, most))))


def random_rows(rng: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """Queries and responses of 1-4 rows; some responses, but not all, are empty."""
    n_rows = rng.randint(1, 4)
    queries = [random_tokens(rng, 1, rng.choice([1, 9])) for _ in range(n_rows)]
    responses = [random_tokens(rng, 0, rng.choice([1, 9])) for _ in range(n_rows)]
    responses[rng.randrange(n_rows)] = random_tokens(rng, 1, 9)
    return queries, responses


def parsed(notation: str) -> Placement:
    """By the default separators where they will do."""
    return Placement.parse(notation, *[SEPARATORS] * ("Equals" in notation))


@cache
def layout_cases():
    """(notation, queries, responses): hundreds, for all that needs no model."""
    rng = random.Random(0)
    return [(random_notation(rng), *random_rows(rng)) for _ in range(400)]


def comma_first_cases():
    """Layout cases in which a Comma group has to wait for the first response token."""
    return [(notation, query, response) for notation, queries, responses in layout_cases()
            for query, response in zip(queries, responses)
            if "Comma" in notation and response[:1] == [COMMA]]


def random_model(rng: random.Random, notation: str) -> tuple[GPT, LatentTokens]:
    """A tiny model, all weights random, and latents. It decodes few kinds of tokens, often ",".

    Much attention and a small MLP make what it decodes depend on all that it was fed.
    """
    torch.manual_seed(rng.randrange(10 ** 6))
    model = GPT(GPTConfig(vocab_size=len(TOKEN_ID), block_size=64, n_layer=rng.randint(1, 2),
                          n_head=2, n_embd=rng.choice([8, 12, 16]))).requires_grad_(False)
    for name, parameter in model.named_parameters():
        std = 1.0 if "attention_out" in name else 0.125 if "mlp_out" in name else 0.5
        torch.nn.init.normal_(parameter, std=std)
    for table in model.embeddings:
        table.weight[-1] = 0.0
    decoded = encode(",=0123")
    rows = model.head.weight[decoded] * 2
    model.head.weight.zero_()
    model.head.weight[decoded] = rows - rows.mean(dim=0)  # so the best of them is above 0
    latents = LatentTokens(parsed(notation), model.config.n_embd)
    torch.nn.init.normal_(latents.vectors, std=0.5)
    return model, latents.requires_grad_(False)


@cache
def model_cases():
    """(notation, model, latents, queries, responses): a few dozen."""
    rng, cases = random.Random(1), []
    for _ in range(24):
        notation = random_notation(rng)
        cases.append((notation, *random_model(rng, notation), *random_rows(rng)))
    return cases


def code_batch(notation, queries, responses):
    return make_batch(parsed(notation), queries, responses)


def expected_slots(notation, query, response):
    return reference.row_slots(notation, query, response, SEPARATORS)


# ------------------------------------------------------------------------- slots, positions, reads

def test_the_groups_of_a_placement():
    """Bug caught: vectors of one group used for another: 10 and 5 sorted as numbers, say."""
    for notation, _, _ in layout_cases():
        placement = parsed(notation)
        groups = [(",".join(group.places), group.m) for group in placement.groups]
        assert groups == list(reference.parse(notation).items())


def test_slots_of_a_batch():
    """Bug caught: a group left out, doubled, or on the wrong side of its token in some batch."""
    for notation, queries, responses in layout_cases():
        batch = code_batch(notation, queries, responses)
        for row, query, response in zip(batch.sources.tolist(), queries, responses):
            expected = reference.sources(notation, expected_slots(notation, query, response))
            assert row[:len(expected)] == expected, (notation, query, response)


def test_a_batch_is_as_wide_as_its_longest_row():
    """Bug caught: slots that belong to no row, after the last slot of the longest."""
    for notation, queries, responses in layout_cases():
        longest = max(len(expected_slots(notation, *row)) for row in zip(queries, responses))
        batch = code_batch(notation, queries, responses)
        assert batch.sources.shape == batch.position_ids.shape == (len(queries), longest)


def test_positions_of_a_batch():
    """Bug caught: a latent with the position of the token before it, or one that moves tokens."""
    for notation, queries, responses in layout_cases():
        batch = code_batch(notation, queries, responses)
        for row, query, response in zip(batch.position_ids.tolist(), queries, responses):
            expected = reference.position_ids(notation, expected_slots(notation, query, response))
            assert row[:len(expected)] == expected, (notation, query, response)


def test_read_slots_of_a_batch():
    """Bug caught: labels shifted by one, so that a Comma latent is asked for its comma."""
    for notation, queries, responses in layout_cases():
        batch = code_batch(notation, queries, responses)
        for row, query, response in zip(batch.read_slots.tolist(), queries, responses):
            expected = reference.read_slots(notation, query, response, SEPARATORS)
            assert row[:len(response)] == expected, (notation, query, response)


def test_targets_of_a_batch():
    """Bug caught: padding of the shorter responses is scored, or a query token is."""
    for notation, queries, responses in layout_cases():
        most = max(map(len, responses))
        expected = [response + [-100] * (most - len(response)) for response in responses]
        assert code_batch(notation, queries, responses).targets.tolist() == expected


def test_token_ids_of_a_batch():
    """Bug caught: query and response of ragged rows joined with padding between them."""
    for notation, queries, responses in layout_cases():
        rows = code_batch(notation, queries, responses).token_ids.tolist()
        for row, query, response in zip(rows, queries, responses):
            assert row[:len(query + response)] == query + response


@pytest.mark.parametrize("n_response", range(4))
def test_a_row_grows_token_by_token(n_response):
    """Bug caught: decoding lays a row out differently from training, at any moment of it."""
    for notation, queries, responses in layout_cases():
        query, response = queries[0], responses[0][:n_response]
        row = AugmentedRow(parsed(notation), query)
        for token_id in response:
            row.append(token_id)
        slots = expected_slots(notation, query, response)
        assert (row.token_ids, row.sources, row.position_ids) == (
            query + response, reference.sources(notation, slots),
            reference.position_ids(notation, slots)), (notation, query, response)


def test_a_comma_group_waits_for_a_first_comma():
    """Bug caught: the group of a comma right after the query is forgotten, or fed with the query,
    so that the first response token is read off a Comma latent."""
    cases = comma_first_cases()
    assert len(cases) > 50
    for notation, query, response in cases:
        row = AugmentedRow(parsed(notation), query)
        known = len(row.sources)
        row.append(COMMA)
        m = reference.parse(notation)["Comma"]
        names = expected_slots(notation, query, [COMMA])[known:]
        assert names == [*(("latent", "Comma", j) for j in range(m)), ("verbal", len(query))]
        assert len(row.sources) == known + m + 1, (notation, query, response)


# ------------------------------------------------------------------------- logits, loss, decoding

def test_logits_of_response_tokens():
    """Bug caught: a mask, look-back or rotation that latents or padding disturb."""
    for notation, model, latents, queries, responses in model_cases():
        logits = response_logits(model, latents, code_batch(notation, queries, responses))
        for row, query, response in zip(logits, queries, responses):
            expected = reference.response_logits(model, latents.vectors, notation, query, response,
                                                 SEPARATORS) if response else row[:0]
            off = (row[:len(response)] - expected).abs()
            assert (off < 1e-4).all(), (notation, query, response)


def test_loss():
    """Bug caught: a mean of the rows' means, or padding and empty responses that count."""
    for notation, model, latents, queries, responses in model_cases():
        loss = response_loss(model, latents, code_batch(notation, queries, responses))
        expected = reference.loss(model, latents.vectors, notation, queries, responses, SEPARATORS)
        assert loss.item() == pytest.approx(expected, abs=1e-4), (notation, queries, responses)


def compare_decoding(notation, model, latents, queries) -> int:
    """Compare greedy decoding of all rows at once; the number of rows too close to call."""
    responses, skipped = generate(model, latents, queries, NEW_TOKENS), 0
    for query, response in zip(queries, responses):
        expected, margin = reference.decode(model, latents.vectors, notation, query, NEW_TOKENS,
                                            SEPARATORS)
        skipped += margin < 1e-4
        assert margin < 1e-4 or response == expected, (notation, query)
    return skipped


def test_decoding():
    """Bug caught: in batches whose rows differ, a cache with slots missing, doubled or late."""
    skipped = sum(compare_decoding(notation, model, latents, queries)
                  for notation, model, latents, queries, _ in model_cases()[:12])
    assert skipped <= 2


def test_decoding_a_first_comma():
    """Bug caught: a comma decoded right after the query enters the cache without its group."""
    rng, compared, skipped = random.Random(2), 0, 0
    while compared < 12:
        notation = random_notation(rng, always=("Comma",))
        model, latents = random_model(rng, notation)
        query = random_tokens(rng, 1, 6)
        first, _ = reference.decode(model, latents.vectors, notation, query, 1, SEPARATORS)
        if first == [COMMA]:
            compared += 1
            skipped += compare_decoding(notation, model, latents, [query])
    assert skipped <= 2
