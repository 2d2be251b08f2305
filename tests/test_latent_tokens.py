"""Insertion, position sharing, targets and decoding against a hand-worked picture and oracles."""

import pytest
import torch

from latent_tokens import (LatentTokens, Placement, VerbalBatch, augment, count_latents, generate,
                           response_logits, response_loss)
from tasks import ALPHABET, TOKEN_ID, decode, encode

V = len(ALPHABET)
PLACEMENTS = ["Start_2", "End_3", "Comma_2", "3_1", "8_2", "Start_1+Comma_1",
              "Comma_2+2_1+End_1+Start_3", "4_1+3_2", "Comma_2-own", "Start_1+End_1-own"]
# Ragged, unsynchronised rows: commas and lengths fall differently in each.
QUERIES = ["1,2", "44@47=83,", ",", "a=3,k=7,f=1?ak=", "12"]
RESPONSES = ["3,4", "47@83=34,83@34=21,", "5,,6", "10;", ",,,"]


@pytest.fixture
def writer(model):
    """A random model that writes nothing but ``,`` and ``1``, and those irregularly."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    direction = torch.randn(model.config.width)
    model.head.weight.zero_()
    model.head.weight[TOKEN_ID[","]] = direction
    model.head.weight[TOKEN_ID["1"]] = -direction
    return model


def some_latents(model, notation: str) -> LatentTokens:
    latents = LatentTokens(Placement.parse(notation), model.config.width)
    torch.nn.init.normal_(latents.vectors, std=1.0, generator=torch.Generator().manual_seed(2))
    return latents


def some_batch(rows=slice(None)) -> VerbalBatch:
    return VerbalBatch.collate([encode(text) for text in QUERIES[rows]],
                               [encode(text) for text in RESPONSES[rows]])


def naive_row(placement: Placement, query: list[int], response: list[int], width: int):
    """The paper's rules read out loud, one token at a time: slots, position ids, read slots."""
    offset, first_vector = 0, {}
    for group in placement.groups:
        first_vector[group] = width + offset
        offset += group.m
    slots, positions, read = [], [], []
    for t, token in enumerate(query + response):
        def insert(groups):
            for group in groups:
                slots.extend(first_vector[group] + j for j in range(group.m))
                positions.extend([t] * group.m)
        known, waiting = [], []
        for group in placement.groups:
            if group.where == "Start" and t == 0 or group.where == "End" and t == len(query):
                known.append(group)
            elif group.where.isdigit() and t > 0 and t % int(group.where) == 0:
                known.append(group)
            elif group.where == "Comma" and token == TOKEN_ID[","]:
                waiting.append(group)
        if t > len(query):  # a later response token is read off the verbal token before it
            read.append(len(slots) - 1)
        insert(known)
        if t == len(query):  # the first one off the last slot of the augmented query
            read.append(len(slots) - 1)
        insert(waiting)
        slots.append(t)
        positions.append(t)
    return slots, positions if placement.share_positions else list(range(len(slots))), read


def test_the_picture_at_the_top_of_latent_tokens():
    """Bug caught: any change of order, positions or targets. The hand-worked example."""
    batch = VerbalBatch.collate([encode("1,2")], [encode("3,4")])
    rows = augment(batch, Placement.parse("Start_1+Comma_1"))
    S, C = 6, 7  # the six verbal tokens 1,23,4 are sources 0 ... 5
    assert rows.sources.tolist() == [[S, 0, C, 1, 2, 3, C, 4, 5]]
    assert rows.position_ids.tolist() == [[0, 0, 1, 1, 2, 3, 4, 4, 5]]
    assert rows.valid.all()
    assert batch.in_response.tolist() == [[False, False, False, True, True, True]]
    assert rows.read_slots.tolist() == [[0, 0, 0, 4, 5, 7]]  # what is read for 3 , 4


def test_an_end_latent_is_read_for_the_first_response_token():
    """Bug caught: the first target taken from the last verbal token although an End latent follows,
    or from a comma's latents, which decoding has not fed yet."""
    batch = VerbalBatch.collate([encode("1")], [encode(",2")])
    rows = augment(batch, Placement.parse("End_1+Comma_1"))
    E, C = 3, 4
    assert rows.sources.tolist() == [[0, E, C, 1, 2]]
    assert rows.read_slots.tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_insertion_equals_the_naive_loop(notation):
    """Bug caught: vectorised insertion that goes wrong in ragged batches."""
    placement, batch = Placement.parse(notation), some_batch()
    rows, N = augment(batch, placement), batch.token_ids.shape[1]
    for b, (query, response) in enumerate(zip(QUERIES, RESPONSES)):
        slots, positions, read = naive_row(placement, encode(query), encode(response), N)
        assert rows.sources[b, rows.valid[b]].tolist() == slots
        assert rows.position_ids[b, rows.valid[b]].tolist() == positions
        assert rows.read_slots[b, batch.in_response[b]].tolist() == read
        assert rows.valid[b].sum() == len(slots)
        assert count_latents(placement, encode(query), encode(response)) == \
            len(slots) - len(query + response)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_verbal_positions_do_not_move(notation):
    """Bug caught: position sharing that shifts verbal tokens (it is the point of sharing), or a
    switch (-own) that does nothing."""
    placement, batch = Placement.parse(notation), some_batch()
    rows, N = augment(batch, placement), batch.token_ids.shape[1]
    for b, length in enumerate(batch.lengths):
        verbal = rows.valid[b] & (rows.sources[b] < N)
        unmoved = rows.position_ids[b, verbal].tolist() == list(range(length))
        inserted = rows.valid[b].sum() > length
        assert unmoved == (placement.share_positions or not inserted)


def test_no_latents_is_the_base_model_bit_for_bit(model):
    """Bug caught: an insertion path that costs the base something even when it inserts nothing."""
    nothing, batch = LatentTokens(Placement(()), model.config.width), some_batch(slice(0, 1))
    rows, position_ids = augment(batch, nothing.placement), torch.arange(6)[None]
    slots = nothing.fill(rows.sources, model.embed(batch.token_ids))
    base = model(batch.token_ids, position_ids)
    assert torch.equal(rows.position_ids, position_ids)
    assert torch.equal(model(slots, rows.position_ids), base)
    assert rows.read_slots.tolist() == [[0, 0, 0, 2, 3, 4]]  # plain next-token prediction
    torch.testing.assert_close(response_logits(model, nothing, batch)[:, 3:], base[:, 2:-1])

    written = encode(QUERIES[1])
    for _ in range(12):
        tokens = torch.tensor([written])
        written.append(int(model(tokens, torch.arange(len(written))[None])[0, -1].argmax()))
    assert generate(model, nothing, [encode(QUERIES[1])], 12) == [written[-12:]]


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_a_ragged_batch_equals_each_row_alone(model, notation):
    """Bug caught: padding that is seen, or rows that disturb one another, in training."""
    latents, batch = some_latents(model, notation), some_batch()
    together = response_logits(model, latents, batch)
    for b in range(len(QUERIES)):
        row = some_batch(slice(b, b + 1))
        alone = response_logits(model, latents, row)[row.in_response]
        torch.testing.assert_close(together[b, batch.in_response[b]], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_unsynchronised_decoding_equals_each_row_alone(writer, notation):
    """Bug caught: a group fed to the wrong row, at the wrong moment, or at a wrong position."""
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    together = generate(writer, latents, queries, 24)
    assert together == [generate(writer, latents, [query], 24)[0] for query in queries]
    commas = [decode(row).count(",") for row in together]
    assert len(set(commas)) > 1, "the rows ought to differ in when they need their latents"


@pytest.mark.parametrize("notation", PLACEMENTS)
def test_the_loss_reads_the_slots_that_decoding_reads(writer, notation):
    """Bug caught: training and decoding that see different sequences. Teacher forcing along a
    greedy decode must choose the very tokens that decoding chose."""
    latents = some_latents(writer, notation)
    queries = [encode(query) for query in QUERIES]
    written = generate(writer, latents, queries, 24)
    batch = VerbalBatch.collate(queries, written)
    chosen = response_logits(writer, latents, batch).argmax(dim=-1)
    assert torch.equal(chosen[batch.in_response], batch.token_ids[batch.in_response])


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
    logits = response_logits(model, latents, some_batch())
    assert logits.shape[-1] == V
    assert all(token < V for row in generate(model, latents, [encode("1,2")], 20) for token in row)


def test_only_the_latents_train(model):
    """Bug caught: gradients that reach the frozen base, or never reach some latent."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    latents = some_latents(model, "Start_1+End_1+3_2+Comma_2")
    start = latents.vectors.detach().clone()
    optimizer = torch.optim.AdamW(latents.parameters(), lr=0.1)
    for _ in range(3):
        loss = response_loss(model, latents, some_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert ((latents.vectors - start).abs().amax(dim=1) > 0.01).all()
    assert [name for name, _ in latents.named_parameters()] == ["vectors"]


def test_save_and_load_give_the_same_output(model, tmp_path):
    """Bug caught: a file that loses the placement, its -own, or the vectors' order."""
    for notation in ("Start_1+Comma_2", "Comma_2-own"):
        latents = some_latents(model, notation)
        latents.save(tmp_path / "latents.pt")
        loaded = LatentTokens.load(tmp_path / "latents.pt", model.config.width)
        assert loaded.placement == latents.placement
        batch = some_batch()
        assert torch.equal(response_logits(model, loaded, batch),
                           response_logits(model, latents, batch))
        assert (tmp_path / "latents.pt").stat().st_size < 8_000
    assert [path.name for path in tmp_path.iterdir()] == ["latents.pt"]


def test_files_that_do_not_fit_are_refused(model, tmp_path):
    """Bug caught: vectors of another width, or another file altogether, loaded in silence."""
    path = tmp_path / "latents.pt"
    some_latents(model, "Comma_2").save(path)
    with pytest.raises(ValueError, match="needs"):
        LatentTokens.load(path, width=32)
    path.write_text("nonsense\nin two lines")
    with pytest.raises(ValueError, match="not a readable file of latent tokens"):
        LatentTokens.load(path, width=16)


@pytest.mark.parametrize("notation", ["Comma_0", "comma_2", "Start", "Start_-1", "0_2", "8_0", "",
                                      "Start_1+", "Middle_2", "Comma_1.5", "Comma_2 ", "-own"])
def test_unknown_placements_are_refused(notation):
    """Bug caught: a typing error that silently tunes something else."""
    with pytest.raises(ValueError, match="unknown placement .*Start_m, End_m, Comma_m, k_m"):
        Placement.parse(notation)


def test_placements_are_read_as_sums():
    """Bug caught: groups of one place that would share no vectors, or an order that matters."""
    assert Placement.parse("Comma_1+Start_2") == Placement.parse("Start_2+Comma_1")
    assert Placement.parse("4_1+3_2") == Placement.parse("3_2+4_1")
    assert str(Placement.parse("Comma_1+8_2+Start_2-own")) == "Start_2+8_2+Comma_1-own"
    assert Placement.parse("Start_2+Comma_1").total == 3
    with pytest.raises(ValueError, match="twice"):
        Placement.parse("Comma_1+Comma_2")
