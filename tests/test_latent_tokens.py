"""Insertion, position sharing, targets and decoding, worked by hand and against oracles.

tests/test_random_cases.py compares all of it with a reference written from the paper alone.
"""

import numpy as np
import pytest
import torch

from latent_tokens import (SEPARATORS, AugmentedRow, LatentTokens, Placement, UserError, generate,
                           make_batch, response_logits, response_loss)
from model import GPT
from tasks import NOT_SCORED, TOKEN_ID, decode, encode

COMMA, EQUALS = encode(",=")
PLACEMENTS = ["Start_2", "End_3", "Comma_2", "3_1", "8_2", "Start_1+Comma_1",
              "Comma_2+2_1+End_1+Start_3", "4_1+3_2", "Comma_2-own", "Start_1+End_1-own",
              "Start,Comma_2", "End,3_1+Comma_1", "Comma_2-latest",
              "Start_1+2_1+Comma_2-own-latest"]
# Ragged, unsynchronized rows: commas and lengths fall differently in each.
QUERIES = ["1,2", "44@47=83,", ",", "a=3,k=7,f=1?ak=", "12"]
RESPONSES = ["3,4", "47@83=34,83@34=21,", "5,,6", "10;", ",,,"]


@pytest.fixture
def writer(model):
    """A random model that writes nothing but ``,`` and ``1``, and those irregularly."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    direction = torch.randn(model.config.n_embd)
    model.head.weight.zero_()
    model.head.weight[TOKEN_ID[","]] = direction
    model.head.weight[TOKEN_ID["1"]] = -direction
    return model


def some_latents(model, notation: str, *separators) -> LatentTokens:
    latents = LatentTokens(Placement.parse(notation, *separators), model.config.n_embd)
    torch.nn.init.normal_(latents.vectors, std=1.0, generator=torch.Generator().manual_seed(2))
    return latents


def some_batch(placement: Placement, rows=slice(None)):
    return make_batch(placement, [encode(text) for text in QUERIES[rows]],
                      [encode(text) for text in RESPONSES[rows]])


def test_the_picture_at_the_top_of_latent_tokens():
    batch = make_batch(Placement.parse("Start_1+Comma_1"), [encode("1,2")], [encode("3,4")])
    S, C = 0, 1  # and the six verbal tokens 1,23,4 are sources 2 ... 7
    assert batch.sources.tolist() == [[S, 2, C, 3, 4, 5, C, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 1, 2, 3, 4, 4, 5]]
    assert batch.read_slots.tolist() == [[4, 5, 7]]  # for 3 , 4
    assert batch.targets.tolist() == [encode("3,4")]


def test_a_first_comma_is_read_off_the_end_latent_before_its_group():
    batch = make_batch(Placement.parse("End_1+Comma_1"), [encode("1")], [encode(",2")])
    E, C = 0, 1
    assert batch.sources.tolist() == [[2, E, C, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 1, 1, 2]]
    assert batch.read_slots.tolist() == [[1, 3]]


def test_a_period_counts_verbal_tokens_from_the_first_of_the_query():
    batch = make_batch(Placement.parse("2_1"), [encode("12"), encode("1")],
                       [encode("3"), encode("2345")])
    # u stands before every verbal token t = 2, 4, ...; in the first row it ends the query.
    assert batch.sources.tolist() == [[1, 2, 0, 3, 0, 0, 0], [1, 2, 0, 3, 4, 0, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 0, 0, 0], [0, 1, 2, 2, 3, 4, 4]]
    assert batch.read_slots.tolist() == [[2, 0, 0, 0], [0, 1, 3, 4]]
    assert batch.targets[0].tolist() == [*encode("3"), *[NOT_SCORED] * 3]


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_verbal_positions_do_not_move(notation):
    placement = Placement.parse(notation.replace("-own", ""))
    for text in QUERIES:
        row = AugmentedRow(placement, encode(text))
        verbal = [position for source, position in zip(row.sources, row.position_ids)
                  if source >= placement.total]
        assert verbal == list(range(len(text)))


def test_adding_a_placement():
    """The README's example: one entry."""
    separators = SEPARATORS | {"Equals": (TOKEN_ID["="],)}
    placement = Placement.parse("Start_1+Equals_2", separators)
    assert str(placement) == "Start_1+Equals_2"
    row = AugmentedRow(placement, encode("1=2"))
    row.append(TOKEN_ID["="])
    assert row.sources == [0, 3, 1, 2, 4, 5, 1, 2, 6]


def test_no_latents_is_the_base_model_bit_for_bit(model):
    nothing = LatentTokens(Placement(), model.config.n_embd)
    batch, position_ids = some_batch(nothing.placement, slice(0, 1)), torch.arange(6)[None]
    embeddings = model.embed(batch.token_ids)
    assert torch.equal(batch.position_ids, position_ids)
    assert torch.equal(nothing.embed(batch.sources, embeddings), embeddings)
    assert torch.equal(response_logits(model, nothing, batch),
                       model(embeddings, position_ids)[:, 2:-1])


def test_decoding_without_latents_is_decoding_from_scratch(model):
    written = encode(QUERIES[1])
    for _ in range(12):
        embeddings = model.embed(torch.tensor([written]))
        logits = model(embeddings, torch.arange(len(written))[None])
        written.append(int(logits[0, -1].argmax()))
    nothing = LatentTokens(Placement(), model.config.n_embd)
    assert generate(model, nothing, [encode(QUERIES[1])], 12) == [written[-12:]]


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_ragged_batch_equals_each_row_alone(model, notation):
    latents = some_latents(model, notation)
    together = response_logits(model, latents, some_batch(latents.placement))
    for b, response in enumerate(RESPONSES):
        alone = response_logits(model, latents, some_batch(latents.placement, slice(b, b + 1)))
        torch.testing.assert_close(together[b, :len(response)], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_unsynchronized_decoding_equals_each_row_alone(writer, notation):
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    together = generate(writer, latents, queries, 24)
    assert together == [generate(writer, latents, [query], 24)[0] for query in queries]
    commas = [decode(row).count(",") for row in together]
    assert len(set(commas)) > 1, "the rows ought to differ in when they need their latents"


@pytest.mark.parametrize("shared, apart", [("Start,Comma_2", "Start_2+Comma_2"),
                                           ("End,Comma_1-own", "End_1+Comma_1-own"),
                                           ("Start,3_1", "Start_1+3_1")])
def test_one_group_in_two_places_equals_two_equal_groups(model, shared, apart):
    """Nothing falls on both places of a group here."""
    one, two = some_latents(model, shared), some_latents(model, apart)
    two.vectors.data.copy_(one.vectors.repeat(2, 1))
    queries, responses = [encode("1,2"), encode("44@47=8")], [encode("3,4"), encode("5,66")]
    losses = [response_loss(model, latents, make_batch(latents.placement, queries, responses))
              for latents in (one, two)]
    assert torch.equal(*losses)
    assert generate(model, one, queries, 20) == generate(model, two, queries, 20)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_the_loss_reads_the_slots_that_decoding_reads(writer, notation):
    """Teacher forcing along a greedy decode chooses the very tokens that decoding chose."""
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    batch = make_batch(latents.placement, queries, generate(writer, latents, queries, 24))
    assert torch.equal(response_logits(writer, latents, batch).argmax(dim=-1), batch.targets)


def test_a_stop_token_cuts_its_own_row_only(writer):
    latents, queries = some_latents(writer, "Comma_1"), [encode(query) for query in QUERIES]
    free, stop = generate(writer, latents, queries, 10), TOKEN_ID[","]
    stopped = generate(writer, latents, queries, 10, stop_id=stop)
    assert stopped == [row[:row.index(stop) + 1] if stop in row else row for row in free]


@pytest.mark.parametrize("stop", [19, [19], {19, 20}, torch.tensor([20, 19]), np.array([19]),
                                  np.int64(19)])
def test_a_stop_may_be_one_id_or_several(model, stop):
    """A list used never to stop: 12 tokens in place of 3."""
    script = iter([5, 6, 19, 7, 8])
    latents = some_latents(model, "Comma_1")
    assert generate(model, latents, [[1, 2]], 5, stop, lambda *_: next(script)) == [[5, 6, 19]]


def test_a_choice_can_be_overruled(writer):
    """The oracle asks for one token at a time, with all the text before it as the query."""
    def double(token_ids, choice):  # every second token is the one before it
        return token_ids[-1] if len(token_ids) % 2 else choice

    latents, queries, expected = some_latents(writer, "Start_1"), [[1, 2], [3]], []
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
    own = some_latents(writer, "Comma_1+Equals_2", {"Comma": [COMMA], "Equals": [EQUALS]})
    theirs = some_latents(writer, "Comma_1+Equals_2", {"Comma": kind([COMMA]),
                                                       "Equals": kind([EQUALS])})
    queries, responses = [encode("1,2"), encode("3=")], [encode(",4"), encode("5=,")]
    one = make_batch(own.placement, queries, responses)
    two = make_batch(theirs.placement, list(map(kind, queries)), list(map(kind, responses)))
    assert one.sources.tolist() == two.sources.tolist()
    assert torch.equal(one.targets, two.targets)
    assert own.placement == theirs.placement
    assert generate(writer, own, queries, 9) == generate(writer, theirs, map(kind, queries), 9)


@pytest.mark.parametrize("no_id", [1.0, "1", None, torch.tensor(1.5), torch.tensor([1, 2])])
def test_what_is_no_id_is_refused(writer, no_id):
    latents = some_latents(writer, "Comma_1")
    for work in (lambda: Placement.parse("Comma_1", {"Comma": [no_id]}),
                 lambda: make_batch(latents.placement, [[1, no_id]], [[2]]),
                 lambda: generate(writer, latents, [[1]], 2, stop_id=[no_id])):
        with pytest.raises(TypeError):
            work()


class Virtual:
    """A model that adds three tokens of its own, as PEFT's prompt tuning does."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, embeddings, *rest):
        return torch.nn.functional.pad(self.model(embeddings, *rest), (0, 0, 3, 0))


def test_logits_of_other_slots_are_refused(model):
    """They gave a loss on shifted slots, without a word."""
    latents, virtual = some_latents(model, "Start_1"), Virtual(model)
    for work in (lambda: generate(virtual, latents, [[1, 2]], 3), lambda: response_loss(
            virtual, latents, make_batch(latents.placement, [[1, 2]], [[3]]))):
        with pytest.raises(ValueError, match="logits for [67] slots, and was given [34]"):
            work()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_write_nothing(model, number):
    """They decoded ; for ever."""
    latents = some_latents(model, "Comma_2")
    latents.vectors.data[1, 3] = number
    with pytest.raises(UserError, match="not finite"):
        generate(model, latents, [[1]], 3)


def test_which_copies_are_hidden_by_hand():
    batch = make_batch(Placement.parse("Comma_1-latest"), [encode(",1")], [encode(",2")])
    assert batch.sources.tolist() == [[0, 1, 2, 0, 3, 4]]  # <C> , 1 <C> , 2
    assert batch.attention_mask.int().tolist() == [[[1, 0, 0, 0, 0, 0],
                                                    [1, 1, 0, 0, 0, 0],
                                                    [1, 1, 1, 0, 0, 0],
                                                    [0, 1, 1, 1, 0, 0],  # the second <C>
                                                    [0, 1, 1, 1, 1, 0],
                                                    [0, 1, 1, 1, 1, 1]]]


def test_the_cache_of_latest_has_room_for_one_group(writer):
    latents, queries = some_latents(writer, "Start_1+Comma_3-latest"), [encode("1,2,3"), [5]]
    caches = []
    writer.make_cache = lambda batch_size: caches.append(GPT.make_cache(writer, batch_size)) or \
        caches[-1]
    written = generate(writer, latents, queries, 30)
    assert decode(written[0]).count(",") > 3
    assert caches[0].is_seen.shape[1] == 1 + 4 + 5 + 29  # of the last token nobody asks any more


def test_no_rows_or_empty_ones_are_refused(model):
    latents = some_latents(model, "Start_1")
    with pytest.raises(ValueError, match="a query needs at least one token"):
        generate(model, latents, [encode("1"), []], 3)
    with pytest.raises(ValueError, match="a batch needs a query"):
        generate(model, latents, [], 3)
    with pytest.raises(ValueError, match="a batch needs a query"):
        make_batch(latents.placement, [], [])
    with pytest.raises(ValueError, match="a response that is not empty"):
        response_loss(model, latents, make_batch(latents.placement, [[1], [2]], [[], []]))


def test_decoding_embeds_and_feeds_no_verbal_token_twice():
    row = AugmentedRow(Placement.parse("Start_1+Comma_1"), encode("1,2"))
    S, C, new = 0, 1, 2  # ``new`` is the first verbal token of a call
    assert row.take_new_slots() == ([S, new, C, new + 1, new + 2], [0, 0, 1, 1, 2],
                                    [1, 2, 3, 4, 5])
    assert row.take_new_slots() == ([], [], [])
    row.append(TOKEN_ID["3"])
    assert row.take_new_slots() == ([new], [3], [6])
    row.append(TOKEN_ID[","])
    assert row.take_new_slots() == ([C, new], [4, 4], [7, 8])


class Bare:
    """A model with nothing but what ``latent_tokens.Model`` names."""

    def __init__(self, model):
        self.device, self.embed, self.embed_last = model.device, model.embed, model.embed_last
        self.make_cache, self.forward = model.make_cache, model.forward

    def __call__(self, embeddings, position_ids, attention_mask=None, cache=None, places=None):
        return self.forward(embeddings, position_ids, attention_mask, cache, places)


def test_a_model_needs_no_more_than_its_protocol(writer):
    latents, bare, queries = some_latents(writer, "1_3"), Bare(writer), [[1], [2, 3]]
    batch = make_batch(latents.placement, queries, [[4, 5], [6]])
    assert torch.equal(response_loss(bare, latents, batch), response_loss(writer, latents, batch))
    assert generate(bare, latents, queries, 9) == generate(writer, latents, queries, 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_float32_latents_under_weights_of_another_type(writer, dtype):
    latents = some_latents(writer, "Start_1+Comma_2")
    batch, queries = some_batch(latents.placement), [encode(query) for query in QUERIES]
    expected, answers = response_loss(writer, latents, batch), generate(writer, latents, queries, 9)
    loss = response_loss(writer.to(dtype), latents, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert latents.vectors.dtype == latents.vectors.grad.dtype == torch.float32
    decoded = generate(writer, latents, queries, 9)
    assert decoded == answers or dtype != torch.float64 and all(map(len, decoded))


def test_every_latent_trains_and_no_weight_of_the_base(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    latents = some_latents(model, "Start_1+End_1+3_2+Comma_2")
    start, batch, losses = latents.vectors.detach().clone(), some_batch(latents.placement), []
    optimizer = torch.optim.AdamW(latents.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(response_loss(model, latents, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert ((latents.vectors - start).abs().amax(dim=1) > 0.01).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, _ in latents.named_parameters()] == ["vectors"]


@pytest.mark.parametrize("notation", ["Comma_0", "comma_2", "Start", "Start_-1", "0_2", "8_0", "",
                                      "Start_1+", "Middle_2", "Comma_1.5", "Comma_2 ", "-own",
                                      "k_2", "1٣_1", "Comma_1-own-own", "Comma_1-latest-own",
                                      "-latest"])
def test_unknown_placements_are_refused(notation):
    with pytest.raises(UserError, match="unknown placement .*Start_m, End_m, Comma_m"):
        Placement.parse(notation)


def test_a_sum_has_one_order_and_names_a_place_once():
    assert Placement.parse("4_1+3_2") == Placement.parse("3_2+4_1")
    assert str(Placement.parse("Comma_1+10_2+8_2+Start_2-own")) == "Start_2+10_2+8_2+Comma_1-own"
    for notation in ("Comma_1-own-latest", "Comma_1-latest"):
        assert str(Placement.parse(notation)) == notation
    for notation in ("Comma,End_1+2_1", "2_1+End,Comma_1"):
        assert str(Placement.parse(notation)) == "End,Comma_1+2_1"
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
    assert AugmentedRow(loaded.placement, [5, 44, TOKEN_ID[","], 273]).sources == sources


@pytest.mark.parametrize("change, message", [
    (lambda saved: {**saved, "vectors": torch.zeros(2, 32)}, "of another version or width"),
    (lambda saved: {**saved, "vectors": torch.zeros(3, 16)}, "of another version"),
    (lambda saved: {**saved, "placement": "Equals_2"}, "of another version"),
    (lambda saved: {"placement": "Comma_2", "vectors": torch.zeros(2, 16)}, "of another version"),
    (lambda saved: {"weights": {}}, "of another version"), (None, "of another version")])
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "latents.pt"
    LatentTokens(Placement.parse("Comma_2"), 16).save(path)
    if change:
        torch.save(change(torch.load(path)), path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=message) as refusal:
        LatentTokens.load(path, 16)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
