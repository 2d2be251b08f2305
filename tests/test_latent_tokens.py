"""Insertion, position sharing, targets and decoding, worked by hand and against oracles.

tests/test_random_cases.py compares all of it with a reference written from the paper alone.
"""

import pytest
import torch
import torch.nn.functional as F

from latent_tokens import (SEPARATORS, AugmentedRow, LatentTokens, Placement, UserError, generate,
                           make_batch, response_logits, response_loss)
from tasks import ALPHABET, NOT_SCORED, TOKEN_ID, decode, encode

PLACEMENTS = ["Start_2", "End_3", "Comma_2", "3_1", "8_2", "Start_1+Comma_1",
              "Comma_2+2_1+End_1+Start_3", "4_1+3_2", "Comma_2-own", "Start_1+End_1-own",
              "Start,Comma_2", "End,3_1+Comma_1"]
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


def some_latents(model, notation: str) -> LatentTokens:
    latents = LatentTokens(Placement.parse(notation), model.config.n_embd)
    torch.nn.init.normal_(latents.vectors, std=1.0, generator=torch.Generator().manual_seed(2))
    return latents


def some_batch(placement: Placement, rows=slice(None)):
    return make_batch(placement, [encode(text) for text in QUERIES[rows]],
                      [encode(text) for text in RESPONSES[rows]])


# ------------------------------------------------------------------------ rows worked by hand

def test_the_picture_at_the_top_of_latent_tokens():
    """Bug caught: any change of order, positions or targets."""
    batch = make_batch(Placement.parse("Start_1+Comma_1"), [encode("1,2")], [encode("3,4")])
    S, C = 0, 1  # and the six verbal tokens 1,23,4 are sources 2 ... 7
    assert batch.sources.tolist() == [[S, 2, C, 3, 4, 5, C, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 1, 2, 3, 4, 4, 5]]
    assert batch.read_slots.tolist() == [[4, 5, 7]]  # for 3 , 4
    assert batch.targets.tolist() == [encode("3,4")]


def test_an_end_latent_right_before_a_comma():
    """Bug caught: the first target read off the last verbal token although an End latent follows,
    or off the comma's latents, which decoding has not fed yet."""
    batch = make_batch(Placement.parse("End_1+Comma_1"), [encode("1")], [encode(",2")])
    E, C = 0, 1
    assert batch.sources.tolist() == [[2, E, C, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 1, 1, 2]]
    assert batch.read_slots.tolist() == [[1, 3]]


def test_periodic_latents_in_a_ragged_batch():
    """Bug caught: a period counted from the response on, or over latents; wrong padding."""
    batch = make_batch(Placement.parse("2_1"), [encode("12"), encode("1")],
                       [encode("3"), encode("2345")])
    # u stands before every verbal token t = 2, 4, ...; in the first row it ends the query.
    assert batch.sources.tolist() == [[1, 2, 0, 3, 0, 0, 0], [1, 2, 0, 3, 4, 0, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 0, 0, 0], [0, 1, 2, 2, 3, 4, 4]]
    assert batch.read_slots.tolist() == [[2, 0, 0, 0], [0, 1, 3, 4]]
    assert batch.targets[0].tolist() == [*encode("3"), *[NOT_SCORED] * 3]


def test_latents_with_positions_of_their_own():
    """Bug caught: an -own that does nothing, or that changes more than the positions."""
    queries, responses = [encode("1,2")], [encode("3")]
    shared = make_batch(Placement.parse("Start_1+Comma_1"), queries, responses)
    own = make_batch(Placement.parse("Start_1+Comma_1-own"), queries, responses)
    assert own.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert torch.equal(own.sources, shared.sources)
    assert torch.equal(own.read_slots, shared.read_slots)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_verbal_positions_do_not_move(notation):
    """Bug caught: position sharing that shifts verbal tokens (it is the point of sharing)."""
    placement = Placement.parse(notation.removesuffix("-own"))
    for text in QUERIES:
        row = AugmentedRow(placement, encode(text))
        verbal = [position for source, position in zip(row.sources, row.position_ids)
                  if source >= placement.total]
        assert verbal == list(range(len(text)))


def test_another_tokenizer_has_other_commas():
    """Bug caught: a comma's id that is fixed inside."""
    placement = Placement.parse("Comma_1", {"Comma": (7, 9)})
    assert AugmentedRow(placement, [1, 7, 2, 9]).sources == [1, 0, 2, 3, 0, 4]


def test_adding_a_placement():
    """The README's example. Bug caught: a new separator that takes more than one entry."""
    separators = SEPARATORS | {"Equals": (TOKEN_ID["="],)}
    placement = Placement.parse("Start_1+Equals_2", separators)
    assert str(placement) == "Start_1+Equals_2"
    row = AugmentedRow(placement, encode("1=2"))
    row.append(TOKEN_ID["="])
    assert row.sources == [0, 3, 1, 2, 4, 5, 1, 2, 6]


# ------------------------------------------------------------------------ equivalences

def test_no_latents_is_the_base_model_bit_for_bit(model):
    """Bug caught: an insertion path that costs the base something even when it inserts nothing."""
    nothing = LatentTokens(Placement(), model.config.n_embd)
    batch, position_ids = some_batch(nothing.placement, slice(0, 1)), torch.arange(6)[None]
    embeddings = model.embed(batch.token_ids)
    assert torch.equal(batch.position_ids, position_ids)
    assert torch.equal(nothing.embed(batch.sources, embeddings), embeddings)
    assert torch.equal(response_logits(model, nothing, batch),
                       model(embeddings, position_ids)[:, 2:-1])


def test_decoding_without_latents_is_plain_decoding(model):
    """Bug caught: a cache, position or look-back that differs from a run from scratch."""
    written = encode(QUERIES[1])
    for _ in range(12):
        embeddings = model.embed(torch.tensor([written]))
        logits = model(embeddings, torch.arange(len(written))[None])
        written.append(int(logits[0, -1].argmax()))
    nothing = LatentTokens(Placement(), model.config.n_embd)
    assert generate(model, nothing, [encode(QUERIES[1])], 12) == [written[-12:]]


def hide_latents(model, hidden: torch.Tensor):
    """Let no slot attend to the hidden ones (T,), in every block."""
    mask = ~hidden[None, None, None, :] & torch.ones(len(hidden), len(hidden)).tril().bool()
    mask = mask | torch.eye(len(hidden), dtype=torch.bool)
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda x, rotary, _, cache, forward=forward: forward(x, rotary, mask, cache)


@pytest.mark.parametrize("own", ["", "-own"])
def test_hidden_latents_leave_the_base_only_where_positions_are_shared(model, own):
    """Bug caught: latents that act otherwise than through attention, or move verbal tokens."""
    latents = some_latents(model, "Start_1+Comma_2" + own)
    batch = some_batch(latents.placement, slice(1, 2))
    length = batch.token_ids.shape[1]
    base = model(model.embed(batch.token_ids), torch.arange(length)[None])
    hide_latents(model, hidden=batch.sources[0] < latents.placement.total)
    logits = model(latents.embed(batch.sources, model.embed(batch.token_ids)), batch.position_ids)
    verbal = logits[:, batch.sources[0] >= latents.placement.total]
    assert torch.allclose(verbal, base, rtol=1e-4, atol=1e-4) == (not own)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_ragged_batch_equals_each_row_alone(model, notation):
    """Bug caught: padding that is seen, or rows that disturb one another, in training."""
    latents = some_latents(model, notation)
    together = response_logits(model, latents, some_batch(latents.placement))
    for b, response in enumerate(RESPONSES):
        alone = response_logits(model, latents, some_batch(latents.placement, slice(b, b + 1)))
        torch.testing.assert_close(together[b, :len(response)], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_unsynchronized_decoding_equals_each_row_alone(writer, notation):
    """Bug caught: a group fed to the wrong row, at the wrong moment, or at a wrong position."""
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    together = generate(writer, latents, queries, 24)
    assert together == [generate(writer, latents, [query], 24)[0] for query in queries]
    commas = [decode(row).count(",") for row in together]
    assert len(set(commas)) > 1, "the rows ought to differ in when they need their latents"


def test_a_group_in_two_places_has_the_rank_of_the_first():
    """Bug caught: latents of two groups in another order before a token where both stand."""
    for notation, order in (("Comma,End_1+2_1", [("2",), ("Comma", "End")]),
                            ("2_1+End,Comma_1", [("End", "Comma"), ("2",)])):
        assert [group.places for group in Placement.parse(notation).groups] == order
    assert str(Placement.parse("Start,Comma_2-own")) == "Start,Comma_2-own"


@pytest.mark.parametrize("shared, apart", [("Start,Comma_2", "Start_2+Comma_2"),
                                           ("End,Comma_1-own", "End_1+Comma_1-own"),
                                           ("Start,3_1", "Start_1+3_1")])
def test_one_group_in_two_places_equals_two_equal_groups(model, shared, apart):
    """Nothing falls on both places of a group here. Bug caught: a place that is left out, or a
    vector that differs by place."""
    one, two = some_latents(model, shared), some_latents(model, apart)
    two.vectors.data.copy_(one.vectors.repeat(2, 1))
    queries, responses = [encode("1,2"), encode("44@47=8")], [encode("3,4"), encode("5,66")]
    losses = [response_loss(model, latents, make_batch(latents.placement, queries, responses))
              for latents in (one, two)]
    assert torch.equal(*losses)
    assert generate(model, one, queries, 20) == generate(model, two, queries, 20)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_the_loss_reads_the_slots_that_decoding_reads(writer, notation):
    """Bug caught: training and decoding that see different sequences. Teacher forcing along a
    greedy decode must choose the very tokens that decoding chose."""
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    batch = make_batch(latents.placement, queries, generate(writer, latents, queries, 24))
    assert torch.equal(response_logits(writer, latents, batch).argmax(dim=-1), batch.targets)


# ------------------------------------------------------------------------ decoding

def test_decoding_stops_at_the_stop_token(writer):
    """Bug caught: a row that is cut too early or late, or that stops its neighbours."""
    latents, queries = some_latents(writer, "Comma_1"), [encode(query) for query in QUERIES]
    free, stop = generate(writer, latents, queries, 10), TOKEN_ID[","]
    stopped = generate(writer, latents, queries, 10, stop_id=stop)
    assert stopped == [row[:row.index(stop) + 1] if stop in row else row for row in free]


def test_reminders_are_fed_after_every_comma(writer):
    """Bug caught: a reminder that is asked of the model, or goes into another row. The oracle asks
    for one token at a time, with all the text before it as the query."""
    latents, queries = some_latents(writer, "Start_1"), [encode(query) for query in QUERIES]
    reminder, expected = encode("S+:"), []
    for query in queries:
        row, due = [], []
        while len(row) < 24:
            row += [due.pop(0)] if due else generate(writer, latents, [query + row], 1)[0]
            due = due or reminder * (row[-1] == TOKEN_ID[","])
        expected.append(row)
    assert generate(writer, latents, queries, 24, reminder=reminder) == expected
    assert len({decode(row).find(",") for row in expected}) > 1, "at different moments"


def test_a_latent_cannot_be_sampled(model):
    """Bug caught: logits over the augmented table; a latent's own vector would often win."""
    latents = some_latents(model, "Comma_2")
    logits = response_logits(model, latents, some_batch(latents.placement))
    assert logits.shape[-1] == len(ALPHABET)


def test_an_empty_query_is_refused(model):
    """Bug caught: a first response token read off another row, or off padding."""
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, some_latents(model, "Start_1"), [encode("1"), []], 3)


# ------------------------------------------------------------------------ training

def test_the_loss_is_the_mean_cross_entropy_of_response_tokens(model):
    """Bug caught: latents, queries or padding that are scored, or a mean over rows."""
    latents = some_latents(model, "Start_1+Comma_1")
    batch = some_batch(latents.placement)
    logits = response_logits(model, latents, batch)
    losses = [F.cross_entropy(logits[b, i], torch.tensor(token_id)).item()
              for b, response in enumerate(RESPONSES)
              for i, token_id in enumerate(encode(response))]
    assert response_loss(model, latents, batch).item() == pytest.approx(sum(losses) / len(losses))


def tune(model, latents, steps: int) -> list[float]:
    """A few steps on one batch; returns the losses."""
    optimizer, losses = torch.optim.AdamW(latents.parameters(), lr=0.1), []
    for _ in range(steps):
        loss = response_loss(model, latents, some_batch(latents.placement))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_overfitting_one_batch_lowers_the_loss(model):
    """Bug caught: gradients with the wrong sign, or of another slot."""
    losses = tune(model, some_latents(model, "Start_2+Comma_2"), steps=30)
    assert losses[-1] < 0.8 * losses[0]


def test_only_the_latents_train(model):
    """Bug caught: gradients that reach the frozen base, or never reach some latent."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    latents = some_latents(model, "Start_1+End_1+3_2+Comma_2")
    start = latents.vectors.detach().clone()
    tune(model, latents, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert ((latents.vectors - start).abs().amax(dim=1) > 0.01).all()
    assert [name for name, _ in latents.named_parameters()] == ["vectors"]


# ------------------------------------------------------------------------ notation and files

@pytest.mark.parametrize("notation", ["Comma_0", "comma_2", "Start", "Start_-1", "0_2", "8_0", "",
                                      "Start_1+", "Middle_2", "Comma_1.5", "Comma_2 ", "-own",
                                      "k_2", "1٣_1"])
def test_unknown_placements_are_refused(notation):
    """Bug caught: a typing error that silently tunes something else."""
    with pytest.raises(UserError, match="unknown placement .*Start_m, End_m, Comma_m"):
        Placement.parse(notation)


def test_sums_commute():
    """Bug caught: an order of terms that matters, or vectors that belong to another group."""
    assert Placement.parse("Comma_1+Start_2") == Placement.parse("Start_2+Comma_1")
    assert Placement.parse("4_1+3_2") == Placement.parse("3_2+4_1")
    assert str(Placement.parse("Comma_1+8_2+Start_2-own")) == "Start_2+8_2+Comma_1-own"
    assert Placement.parse("Start_2+Comma_1").total == 3


def test_a_place_is_named_once():
    """Bug caught: groups of one place that would share no vectors."""
    with pytest.raises(UserError, match="twice"):
        Placement.parse("Comma_1+Comma_2")


@pytest.mark.parametrize("notation", ["Start_1+Comma_2", "Comma_2-own"])
def test_save_and_load_give_the_same_output(model, tmp_path, notation):
    """Bug caught: a file that loses the placement, its -own, or the vectors' order."""
    latents = some_latents(model, notation)
    latents.save(tmp_path / "latents.pt")
    loaded = LatentTokens.load(tmp_path / "latents.pt", model.config.n_embd)
    assert loaded.placement == latents.placement
    batch = some_batch(latents.placement)
    assert torch.equal(response_logits(model, loaded, batch),
                       response_logits(model, latents, batch))


@pytest.mark.parametrize("n_embd, content", [(32, None), (16, "nonsense\nin two lines")])
def test_files_that_do_not_fit_are_refused(model, tmp_path, n_embd, content):
    """Bug caught: vectors of another width, or another file altogether, loaded in silence."""
    path = tmp_path / "latents.pt"
    some_latents(model, "Comma_2").save(path)
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=f"does not hold latents of width {n_embd}"):
        LatentTokens.load(path, n_embd)
