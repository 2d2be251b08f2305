"""Insertion, positions, targets and decoding by hand; more of it in tests/test_random_cases.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latent_tokens import (AugmentedRow, LatentTokens, Placement, UserError, generate, make_batch,
                           response_logits, response_loss)
from tasks import TOKEN_ID, encode
from tests.conftest import some_latents

COMMA, EQUALS = encode(",=")
PLACEMENTS = ["Start_2", "End_3", "3_1", "Comma_2+2_1+End_1+Start_3", "Comma_2-own",
              "Start,Comma_2", "End,3_1+Comma_1", "Comma_2-latest",
              "Start_1+2_1+Comma_2-own-latest"]
# Ragged, unsynchronized rows: commas and lengths fall differently in each.
QUERIES = list(map(encode, ["1,2", "44@47=83,", ",", "a=3,k=7,f=1?ak=", "12"]))
RESPONSES = list(map(encode, ["3,4", "47@83=34,83@34=21,", "5,,6", "10;", ",,,"]))


@pytest.fixture
def writer(model):
    """A random model that writes nothing but ``,`` and ``1``, and those irregularly."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    direction = torch.randn(model.config.n_embd)
    model.head.weight.zero_()
    model.head.weight[COMMA] = direction
    model.head.weight[TOKEN_ID["1"]] = -direction
    return model


def some_batch(placement: Placement, rows=slice(None)):
    return make_batch(placement, QUERIES[rows], RESPONSES[rows])


@pytest.mark.parametrize("notation, query, response, sources, position_ids, read_slots", [
    # The picture at the top of latent_tokens.py: <S> 1 <C> , 2 | 3 <C> , 4
    ("Start_1+Comma_1", "1,2", "3,4", "021345167", "001123445", "457"),
    # One vector in both places: <C> 1 <C> , 2 | 3 <C> , 4
    ("Start,Comma_1", "1,2", "3,4", "010234056", "001123445", "457"),
    # Two vectors: 1 <E1> <E2> , <E1> <E2> | 2 <E1> <E2> , and one with a period: <S> 1 | 2 <S> 3 4
    ("End,Comma_2", "1,", "2,", "2013014015", "0111222333", "56"),
    ("Start,2_1", "1", "234", "012034", "001223", "124"),
    # A first comma is read off <E>, before its own latent: 1 <E> | <C> , 2
    ("End_1+Comma_1", "1", ",2", "20134", "01112", "13"),
    # A period counts verbal tokens from the first of the query: 1 2 <2> | 3, 1 | 2 <2> 3 4 <2> 5
    ("2_1", "12", "3", "1203", "0122", "2"), ("2_1", "1", "2345", "1203405", "0122344", "0134")])
def test_rows_by_hand(notation, query, response, sources, position_ids, read_slots):
    batch = make_batch(Placement.parse(notation), [encode(query)], [encode(response)])
    for tensor, digits in ((batch.sources, sources), (batch.position_ids, position_ids),
                           (batch.read_slots, read_slots)):
        assert tensor.tolist() == [list(map(int, digits))]
    assert batch.targets.tolist() == [encode(response)]


def test_no_latents_is_the_base_model_bit_for_bit_and_decoding_from_scratch(model):
    nothing, written = LatentTokens(Placement(), model.config.n_embd), [*QUERIES[1]]
    batch, position_ids = some_batch(nothing.placement, slice(0, 1)), torch.arange(6)[None]
    embeddings = model.embed(batch.token_ids)
    assert torch.equal(batch.position_ids, position_ids)
    assert torch.equal(nothing.embed(batch.sources, embeddings), embeddings)
    assert torch.equal(response_logits(model, nothing, batch),
                       model(embeddings, position_ids)[:, 2:-1])
    for _ in range(12):
        embeddings = model.embed(torch.tensor([written]))
        logits = model(embeddings, torch.arange(len(written))[None])
        written.append(int(logits[0, -1].argmax()))
    assert generate(model, nothing, QUERIES[1:2], 12) == [written[-12:]]


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_ragged_batch_equals_each_row_alone(model, notation):
    latents = some_latents(notation)
    together = response_logits(model, latents, some_batch(latents.placement))
    for b, response in enumerate(RESPONSES):
        alone = response_logits(model, latents, some_batch(latents.placement, slice(b, b + 1)))
        torch.testing.assert_close(together[b, :len(response)], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_unsynchronized_decoding_equals_each_row_alone_and_what_is_trained(writer, notation):
    """Teacher forcing along a greedy decode chooses the very tokens that decoding chose."""
    latents = some_latents(notation)
    together = generate(writer, latents, QUERIES, 24)
    assert together == [generate(writer, latents, [query], 24)[0] for query in QUERIES]
    commas = {row.count(COMMA) for row in together}
    assert len(commas) > 1, "the rows ought to differ in when they need their latents"
    batch = make_batch(latents.placement, QUERIES, together)
    assert torch.equal(response_logits(writer, latents, batch).argmax(dim=-1), batch.targets)


@pytest.mark.parametrize("stop", [COMMA, [COMMA], {COMMA, 40}, torch.tensor([40, COMMA]),
                                  np.array([COMMA]), np.int64(COMMA)])
def test_one_stop_or_several_cut_their_own_row_only(writer, stop):
    latents = some_latents("Comma_1")
    free = generate(writer, latents, QUERIES, 10)
    stopped = generate(writer, latents, QUERIES, 10, stop)
    assert stopped == [row[:row.index(COMMA) + 1] if COMMA in row else row for row in free]


def test_a_choice_can_be_overruled(writer):
    """The oracle asks for one token at a time, with all the text before it as the query."""
    def double(token_ids, choice):  # every second token is the one before it
        return token_ids[-1] if len(token_ids) % 2 else choice

    latents, queries, expected = some_latents("Start_1"), [[1, 2], [3]], []
    for query in queries:
        row = list(query)
        while len(row) < len(query) + 12:
            row.append(double(row, generate(writer, latents, [row], 1)[0][0]))
        expected.append(row[len(query):])
    assert generate(writer, latents, queries, 12, overrule=double) == expected


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple,
                                  lambda ids: list(torch.tensor(ids))])
def test_ids_of_other_libraries_are_ids(writer, kind):
    """A tensor of 3 is not in {3}: no latent was ever inserted, and nothing said so."""
    found = []
    for of in (list, kind):
        latents = some_latents("Comma_1+Equals_2", {"Comma": of([COMMA]),
                                                            "Equals": of([EQUALS])})
        queries, responses = ([of(encode(text)) for text in texts]
                              for texts in (("1,2", "3="), (",4", "5=,")))
        batch = make_batch(latents.placement, queries, responses)
        found.append((latents.placement, batch.sources.tolist(), batch.targets.tolist(),
                      generate(writer, latents, iter(queries), 9)))
    assert found[0] == found[1]


@pytest.mark.parametrize("no_id", [1.0, "1", None, torch.tensor(1.5), torch.tensor([1, 2])])
def test_what_is_no_id_is_refused(writer, no_id):
    latents = some_latents("Comma_1")
    for work in (lambda: Placement.parse("Comma_1", {"Comma": [no_id]}),
                 lambda: make_batch(latents.placement, [[1, no_id]], [[2]]),
                 lambda: generate(writer, latents, [[1]], 2, stop_id=[no_id])):
        with pytest.raises(TypeError):
            work()


def test_logits_of_other_slots_are_refused(model, monkeypatch):
    """Of a model that adds tokens of its own, as PEFT does, and gave a loss on shifted slots."""
    latents, forward = some_latents("Start_1"), model.forward
    monkeypatch.setattr(model, "forward", lambda *given: F.pad(forward(*given), (0, 0, 3, 0)))
    for work in (lambda: generate(model, latents, [[1, 2]], 3), lambda: response_loss(
            model, latents, make_batch(latents.placement, [[1, 2]], [[3]]))):
        with pytest.raises(ValueError, match="[67] logits of [34] slots"):
            work()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_write_nothing(model, number):
    latents = some_latents("Comma_2")
    latents.vectors.data[1, 3] = number
    with pytest.raises(UserError, match="not finite"):
        generate(model, latents, [[1]], 3)


def test_which_copies_are_hidden_by_hand():
    batch = make_batch(Placement.parse("Comma_1-latest"), [encode(",1")], [encode(",2")])
    assert batch.sources.tolist() == [[0, 1, 2, 0, 3, 4]]  # <C> , 1 <C> , 2
    assert ["".join(map(str, seen)) for seen in batch.attention_mask[0].int().tolist()] == [
        "100000", "110000", "111000", "011100", "011110", "011111"]  # 011100: the second <C>


def test_what_is_hidden_in_its_own_call_is_stored_where_nobody_looks():
    """A place for two slots keeps either, on a GPU; on a CPU the last, so no score shows it."""
    row = AugmentedRow(Placement.parse("Comma_1-latest"), encode(",1,"))
    assert row.take_new_slots()[2] == [0, 2, 3, 1, 4]  # <C> , 1 <C> ,


def test_the_cache_of_latest_has_room_for_one_group(writer, monkeypatch):
    latents, cache = some_latents("Start_1+Comma_3-latest"), writer.make_cache(2)
    monkeypatch.setattr(writer, "make_cache", lambda batch_size: cache)
    written = generate(writer, latents, [encode("1,2,3"), [5]], 30)
    assert written[0].count(COMMA) > 3
    assert cache.is_seen.shape[1] == 1 + 4 + 5 + 29  # of the last token nobody asks any more


def test_no_rows_or_empty_ones_are_refused(model):
    latents = some_latents("Start_1")
    for work, message in (
            (lambda: generate(model, latents, [[1], []], 3), "a query needs at least one token"),
            (lambda: generate(model, latents, [], 3), "a batch needs a query"),
            (lambda: make_batch(latents.placement, [], []), "a batch needs a query"),
            (lambda: make_batch(latents.placement, [[1], [2]], [[3]]), "is shorter than"),
            (lambda: make_batch(latents.placement, [[1]], [[]]), "a response that is not empty")):
        with pytest.raises(ValueError, match=message):
            work()


def test_decoding_embeds_and_feeds_no_verbal_token_twice():
    row = AugmentedRow(Placement.parse("Start_1+Comma_1"), encode("1,2"))
    S, C, new = 0, 1, 2  # ``new`` is the first verbal token of a call
    assert row.take_new_slots() == ([S, new, C, 3, 4], [0, 0, 1, 1, 2], [1, 2, 3, 4, 5])
    assert row.take_new_slots() == ([], [], [])
    row.append(TOKEN_ID["3"])
    assert row.take_new_slots() == ([new], [3], [6])
    row.append(COMMA)
    assert row.take_new_slots() == ([C, new], [4, 4], [7, 8])


class Bare:
    """A model with nothing but what ``latent_tokens.Model`` names."""

    def __init__(self, model):
        for name in ("device", "embed", "embed_last", "make_cache", "forward"):
            setattr(self, name, getattr(model, name))

    def __call__(self, *given):
        return self.forward(*given)


def test_a_model_needs_no_more_than_its_protocol(writer):
    latents, bare, queries = some_latents("1_3"), Bare(writer), [[1], [2, 3]]
    batch = make_batch(latents.placement, queries, [[4, 5], [6]])
    assert torch.equal(response_loss(bare, latents, batch), response_loss(writer, latents, batch))
    assert generate(bare, latents, queries, 9) == generate(writer, latents, queries, 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_float32_latents_under_weights_of_another_type(writer, dtype):
    latents = some_latents("Start_1+Comma_2")
    batch = some_batch(latents.placement)
    expected, answers = response_loss(writer, latents, batch), generate(writer, latents, QUERIES, 9)
    loss = response_loss(writer.to(dtype), latents, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert latents.vectors.dtype == latents.vectors.grad.dtype == torch.float32
    decoded = generate(writer, latents, QUERIES, 9)
    assert decoded == answers or dtype != torch.float64 and all(map(len, decoded))


def test_every_latent_has_a_gradient_and_no_weight_of_the_base(model):
    latents = some_latents("Start_1+End_1+3_2+Comma_2")
    response_loss(model, latents, some_batch(latents.placement)).backward()
    assert (latents.vectors.grad.abs().amax(dim=1) > 1e-3).all()
    assert [name for name, _ in latents.named_parameters()] == ["vectors"]
    assert all(weights.grad is None for weights in model.parameters())


@pytest.mark.parametrize("notation", """
    Comma_0 comma_2 Start Start_-1 0_2 8_0 Start_1+ Middle_2 Comma_1.5 k_2 1٣_1 -own -latest
    Comma_1-own-own Comma_1-latest-own""".split() + ["", "Comma_2 "])
def test_unknown_placements_are_refused(notation):
    with pytest.raises(UserError, match="unknown placement .*Start_m, End_m, Comma_m"):
        Placement.parse(notation)


def test_a_separator_that_nobody_named_is_refused():
    """The method knows no comma: tasks.py names it, or whoever has tokens of their own."""
    with pytest.raises(UserError, match="'Comma_2': expected Start_m, End_m or k_m"):
        Placement.parse("Comma_2", separators={})


def test_a_sum_has_one_order_and_names_a_place_once():
    for notation, name in {
            "Comma_1+10_2+8_2+Start_2-own": "Start_2+10_2+8_2+Comma_1-own", "4_1+3_2": "3_2+4_1",
            "Comma,End_1+2_1": "End,Comma_1+2_1", "2_1+End,Comma_1": "End,Comma_1+2_1",
            "Comma_1-own-latest": "Comma_1-own-latest", "Comma_1-latest": "Comma_1-latest"}.items():
        assert str(Placement.parse(notation)) == name
        assert Placement.parse(notation) == Placement.parse(name)
    with pytest.raises(UserError, match="twice"):
        Placement.parse("Comma_1+End,Comma_2")


def test_latents_start_near_the_mean_and_apart(model):
    latents = LatentTokens(Placement.parse("Comma_999"), model.config.n_embd)
    latents.initialize(model.token_embedding, torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(model.token_embedding, dim=0)
    noise = (latents.vectors - mean) / std
    assert noise.mean(dim=0).abs().max() < 0.02 and (noise.std(dim=0) - 0.1).abs().max() < 0.02
    assert len(noise.unique(dim=0)) == 999


@pytest.mark.parametrize("notation, sources", [("Comma_2-own", [2, 0, 1, 3, 4, 0, 1, 5]),
                                               ("Start,Equals_1", [0, 1, 2, 0, 3, 4]),
                                               ("Comma_1-latest", [1, 0, 2, 3, 0, 4])])
def test_a_file_keeps_vectors_placement_and_separators(tmp_path, notation, sources):
    separators = {"Comma": np.flatnonzero(np.isin(range(300), [44, 273])), "Equals": [COMMA]}
    latents = LatentTokens(Placement.parse(notation, separators), 16)
    torch.nn.init.normal_(latents.vectors)
    latents.save(tmp_path / "latents.pt")
    loaded = LatentTokens.load(tmp_path / "latents.pt", 16)
    assert torch.equal(loaded.vectors, latents.vectors) and loaded.vectors.requires_grad
    assert loaded.placement == latents.placement and str(loaded.placement) == notation
    assert AugmentedRow(loaded.placement, [5, 44, COMMA, 273]).sources == sources


@pytest.mark.parametrize("change", [
    {"vectors": torch.zeros(2, 32)}, {"vectors": torch.zeros(3, 16)}, {"placement": "Equals_2"},
    {"separators": None}, {"placement": None}, None])
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, change):
    path = tmp_path / "latents.pt"
    LatentTokens(Placement.parse("Comma_2"), 16).save(path)
    if change:
        saved = torch.load(path) | change
        torch.save({name: value for name, value in saved.items() if value is not None}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="of another version or width") as refusal:
        LatentTokens.load(path, 16)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
