"""The script as a user meets it: whole small runs, what each phase draws, tuning by hand."""

from collections import defaultdict
from contextlib import redirect_stdout
from copy import deepcopy
from math import isfinite, nan
from unittest.mock import Mock

import pytest
import torch

from latent_tokens import LatentTokens, Placement
from model import GPT, GPTConfig, weights_checksum
from tasks import END, TASKS, TOKEN_ID, decode, draw, draw_examples, encode, purpose_of
from tests.conftest import each_task, run
import train
from train import Muon, PretrainConfig, Start, TuneConfig

pytestmark = pytest.mark.usefixtures("tiny")
GENERATION = TASKS["generation"]


@pytest.fixture
def base() -> GPT:
    settings = GENERATION.pretraining | train.FAST_PRETRAIN
    return train.pretrain(GENERATION, PretrainConfig(**settings), 0, "cpu")[0].requires_grad_(False)


def small(**settings) -> TuneConfig:
    return TuneConfig(**{"steps": 3, "batch_size": 4, "validation_examples": 6} | settings)


@each_task
def test_a_run_has_a_line_for_each_method_and_seed(task, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, task.name, task)
    rows = run(tmp_path, "--task", task.name, "--seeds", "0", "1")
    methods = [*train.REFERENCES, *task.claim.baselines, *task.claim.proposed]
    assert [(row["task"], row["base"], row["method"], row["seed"]) for row in rows] == [
        (task.name, 60, method, seed) for seed in (0, 1) for method in methods]
    lengths = [length for each in draw_examples(task, task.test_lengths, "test", 0, 1)
               for length in task.score(each, each.response)]
    for row in rows:
        assert row["lengths"] == lengths
        assert len(row["accuracy"]) == len(row["exact"]) == len(lengths)
    assert len({row["trained"] for row in rows}) == 2  # all placements equally many


def test_all_tasks_and_several_bases(tmp_path):
    """Any number will do."""
    rows = run(tmp_path, "--task", "all", "--bases", "3", "9" * 30, "3", "--methods", "Start_1")
    assert [(row["task"], row["base"]) for row in rows[::4]] == [
        (name, base) for name in TASKS for base in (3, int("9" * 30))]
    assert len({row["base_checksum"] for row in rows}) == len(rows) / 4 == 2 * len(TASKS)


def test_a_row_knows_its_base_its_latents_and_how_they_were_tuned(finished, tmp_path):
    rows = train.read_results(finished / train.RESULTS)
    assert [row["trained"] for row in rows] == [0, 0, 0, 32, 16, 32]
    assert [row["inserted"] for row in rows] == [0, 0, 0, 2, 5, 6]
    assert {str(path.relative_to(finished)) for path in finished.rglob("*.*")} == {
        "generation-base60.pt", "results.jsonl", *(row["latents"] for row in rows[3:])}
    base = GPT.load(finished / "generation-base60.pt")
    assert base.notes["pretraining"]["model"]["n_embd"] == 16 and len(base.notes["losses"]) == 1
    for row in rows:
        assert row["base_checksum"] == weights_checksum(base)
        assert train.key(row) == train.key(row | {"pretraining": base.notes["pretraining"]})
    for row in rows[3:]:
        latents = LatentTokens.load(finished / row["latents"], 16)
        assert str(latents.placement) == row["method"]
        assert weights_checksum(latents) == row["vectors_checksum"]
        assert [start["lr"] for start in row["starts"]] == [0.5, 1.0, 2.0]
    *_, again = run(tmp_path / "again", "--methods", "Comma_1")  # on a base of its own
    assert again | {"seconds": 0} == rows[4] | {"seconds": 0}


def test_fast_keeps_what_a_task_sets_and_shows_a_sample(tmp_path, monkeypatch, capsys):
    other = {"model": GPTConfig(len(TOKEN_ID), n_layer=2, n_head=1, n_embd=8), "adam_lr": 1e-4}
    monkeypatch.setattr(type(GENERATION), "pretraining", GENERATION.pretraining | other)
    row, *_ = run(tmp_path, "--methods", "Start_1")
    settings = row["pretraining"]
    assert [settings["model"]["n_layer"], settings["adam_lr"], settings["steps"]] == [2, 1e-4, 2]
    sample, _ = capsys.readouterr().out.split("\ngeneration, base")
    *documents, query, response = sample.split()[-5:]
    assert all(text.endswith(END) for text in documents)
    assert GENERATION.after(query) == response[1:9]


def test_each_line_can_be_read_before_the_next_result_is_there(tmp_path, monkeypatch):
    """``python train.py > log`` showed nothing for minutes."""
    seen, test, log = [], train.test, tmp_path / "log"
    monkeypatch.setattr(train, "test", lambda *given: seen.append(
        log.read_text().splitlines()[-1].split()[0]) or test(*given))
    with log.open("w") as file, redirect_stdout(file):
        run(tmp_path / "run", "--methods", "Start_1")
    assert seen == ["generation,", *train.REFERENCES]


def test_each_phase_and_seed_sees_queries_of_its_own(tmp_path, monkeypatch):
    """Tuning and the choice of a start see in-distribution lengths, the test the longest."""
    seen, of_result = defaultdict(list), {}
    loss, generate = train.response_loss, train.generate

    def watched_loss(model, latents, batch):
        value = loss(model, latents, batch)
        seen["tune" if value.requires_grad else "validation"] += [
            decode(row).rstrip(END) for row in batch.token_ids.tolist()]  # padding is token 0, ;
        return value

    def watched_generate(model, latents, queries, max_new_tokens, *rest):
        seen["test"] += [decode(query) + "," * (max_new_tokens // 9) for query in queries]
        return generate(model, latents, queries, max_new_tokens, *rest)

    def watched_append(path, row):
        of_result[row["method"], row["seed"]] = dict(seen)
        seen.clear()

    monkeypatch.setattr(train, "response_loss", watched_loss)
    monkeypatch.setattr(train, "generate", watched_generate)
    monkeypatch.setattr(train, "append_result", watched_append)
    monkeypatch.setattr(train, "FAST_TUNE", train.FAST_TUNE | {"steps": 8, "test_examples": 9})
    monkeypatch.setattr(train, "REFERENCES", ("base",))
    run(tmp_path, "--methods", "Start_1", "--seeds", "0", "1")
    first, second = of_result["Start_1", 0], of_result["Start_1", 1]
    for purpose, texts in first.items():
        assert {purpose_of(text[:8]) for text in texts} == {purpose}
        assert {text.count(",") for text in texts} == ({5} if purpose == "test" else {1, 2})
        assert len(texts) == {"tune": (3 + 2 * 3 + 4) * 4, "validation": 7 * 8, "test": 9}[purpose]
        assert len({text[:8] for text in texts} & {text[:8] for text in second[purpose]}) < 3
    assert [of_result["base", seed] for seed in (0, 1)] == [
        {"test": each["test"]} for each in (first, second)]


@each_task
@pytest.mark.parametrize("method", [*train.REFERENCES, "Start_1"])
def test_what_reaches_decoding(task, method, model, monkeypatch):
    """The rule in words where it belongs, the stop, room for the longest answer, and reminders: to
    a writer that knows the answers and never reminds itself."""
    examples = draw_examples(task, (*task.id_lengths, *task.test_lengths), "test", 0, 300)
    given = LatentTokens(Placement(), 16)
    opening = task.instruction if method in ("instruction", "reminders") else ""
    reminder = task.reminder if method == "reminders" else ""

    def generate(base, latents, queries, room, stop_id, overrule):
        assert (base, latents, stop_id) == (model, given, TOKEN_ID[END])
        assert room == max(len(each.response.replace(",", "," + reminder)) for each in examples)
        assert list(map(decode, queries)) == [
            opening + each.query.replace(",", "," + reminder) for each in examples]
        return [write(query, each.response, room, overrule)
                for query, each in zip(queries, examples)]

    def write(query, response, room, overrule):
        own = (response.replace(",", "," + "9" * len(reminder)) + "9" * room)[:room]
        written = []
        for choice in encode(own.split(END)[0] + END * (END in own)):
            written.append(overrule(query + written, choice))
        return written

    monkeypatch.setattr(train, "generate", generate)
    assert train.answers(model, given, task, method, examples) == [
        each.response for each in examples]


@each_task
def test_a_row_has_the_mean_scores_of_each_length(task, model, monkeypatch):
    """By a writer that drops the end of every third answer."""
    latents = LatentTokens(Placement.parse("Comma_2"), 16)
    drawn, scores = draw_examples(task, task.test_lengths, "test", 5, 30), defaultdict(list)
    texts = [each.response[:None if n % 3 else -1] for n, each in enumerate(drawn)]
    given = (model, latents, task, "Comma_2")
    monkeypatch.setattr(train, "answers", lambda *asked: texts if asked == (*given, drawn) else [])
    row = train.test(*given, 5, small(test_examples=30))
    for example, text in zip(drawn, texts):
        for length, score in task.score(example, text).items():
            scores[length].append(score)
    assert row["lengths"] == list(scores) and 0.6 < row["exact"][-1] < 0.8
    for name in ("accuracy", "exact"):
        assert row[name] == pytest.approx([
            sum(getattr(score, name) for score in each) / len(each) for each in scores.values()])
    assert row["inserted"] == 2 * (drawn[-1].query + drawn[-1].response).count(",")


@pytest.fixture
def begun():
    """Starts that remember one another."""
    class Watched(Start):
        all = []

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.drawn = self.latents.vectors.detach().clone()
            self.all.append(self)

    return Watched


@pytest.mark.parametrize("losses, steps, leads", [
    ((3, 1, 2), (4, 25, 12), 1), ((1, 2, 3), (25, 12, 4), 0), ((nan, 5, 4), (4, 12, 25), 2),
    ((float("inf"), 6, nan), (12, 25, 4), 1)])
def test_the_worst_start_goes_and_then_the_next(losses, steps, leads, base, begun, monkeypatch):
    """After 4 and 12 of 25 steps. Of two without a finite loss the later one goes."""
    loss = train.response_loss

    def response_loss(model, latents, batch):
        if torch.is_grad_enabled():
            return loss(model, latents, batch)
        start = next(each for each in begun.all if each.latents is latents)
        return torch.tensor(losses[begun.all.index(start)] - 0.01 * len(start.losses))

    monkeypatch.setattr(train, "response_loss", response_loss)
    config = small(steps=25, drop_at=(0.16, 0.48), starts=(0.1, 0.2, 0.3))
    start, notes = train.tune(base, GENERATION, Placement.parse("Start_2"), 0, config, begun)
    assert start is begun.all[leads] and notes["start"] == leads
    for number, (each, note) in enumerate(zip(begun.all, notes["starts"], strict=True)):
        assert len(each.losses) == steps[number]
        assert note == {
            "lr": config.starts[number], "losses": [round(loss, 4) for loss in each.losses[::10]],
            "validation_loss": pytest.approx(losses[number] - 0.01 * steps[number])
            if isfinite(losses[number]) else None}


def test_starts_differ_in_their_vectors_and_rates_alone(base, begun, capsys):
    arguments, rates = (base, GENERATION, Placement.parse("Comma_1"), 1), (0.5, 1e30, 2.0)
    chosen, _ = train.tune(*arguments, small(starts=rates, drop_at=()), begun)
    one, diverged, other = begun.all
    assert (one.drawn - other.drawn).abs().mean() > 0.01
    for again, starts in ((one, (0.5,)), (other, (0.1, 0.1, 2.0))):  # others' rates do not matter
        train.tune(*arguments, small(starts=starts, drop_at=()), begun)
        assert torch.equal(begun.all[-1].latents.vectors, again.latents.vectors)
        assert begun.all[-1].losses == again.losses
    assert not isfinite(diverged.validation_loss) and chosen is not diverged
    assert "no latent stands before a response's first token" in capsys.readouterr().err  # Comma_1


def test_the_chosen_start_is_tested_and_saved(tmp_path, monkeypatch):
    chosen, tested, tune, test = [], [], train.tune, train.test
    monkeypatch.setattr(train, "tune", lambda *given: chosen.append(tune(*given)) or chosen[-1])
    monkeypatch.setattr(train, "test", lambda *given: tested.append(given) or test(*given))
    row, ((start, notes),) = run(tmp_path, "--methods", "Start_1")[-1], chosen
    assert [method for _, _, _, method, *_ in tested] == [*train.REFERENCES, "Start_1"]
    assert tested[-1][1] is start.latents and row == row | notes
    assert weights_checksum(start.latents) == weights_checksum(
        LatentTokens.load(tmp_path / row["latents"], 16))


@pytest.mark.parametrize("warmup, step, share", [
    (10, 0, 0.1), (10, 9, 1.0), (10, 50, 1.0), (10, 75, 0.5), (10, 99, 0.02), (0, 0, 1.0)])
def test_the_learning_rate_by_hand(warmup, step, share):
    """10 steps up, then flat, then down over the last half of 100; always a share of the peak."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.2)
    config = PretrainConfig(steps=100, warmup=warmup, decay=0.5)
    for _ in range(2):
        loss = 0.0 * optimizer.param_groups[0]["params"][0].sum() + 3.5
        assert train.descend(loss, [optimizer], step, config) == 3.5
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * share)


def test_muon_is_the_one_of_torch_in_float32(monkeypatch):
    """Each matrix by itself, though those of a shape are stacked. One has no gradient at first."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    noise = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=noise)
              for shape in [(8, 8), (4, 16), (8, 8), (16, 4), (8, 8)]]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = (Muon(ours, {"lr": 0.1, "weight_decay": 0.3}),
                  torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3))
    for step in range(4):
        for one, other in zip(ours[step < 2:], theirs[step < 2:]):
            one.grad = torch.randn(one.shape, generator=noise)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other, start in zip(ours, theirs, starts):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            assert torch.equal(one, start) == (one.grad is None)


def test_every_weight_has_one_optimizer(model):
    groups = [optimizer.param_groups[0]["params"]
              for optimizer in train.make_optimizers(model, PretrainConfig())]
    ids = [id(weights) for group in groups for weights in group]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    assert all(weights.ndim == 2 for weights in groups[0]) and len(groups[0]) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_checksum_is_of_all_bits_of_any_type(dtype, model):
    model, checksum = model.to(dtype), weights_checksum(model.to(dtype))
    assert checksum == weights_checksum(model) and isinstance(checksum, int)
    weights = model.head.weight.data[-1:, -1:]
    weights.copy_(torch.nextafter(weights, weights + 1))
    assert checksum != weights_checksum(model)


def test_tuning_is_this_loop(base):
    """Fresh gradients in each step, rates that fall to zero, weight decay, distinct noise; and no
    bit of the base changes."""
    placement, rng = Placement.parse("Comma_2"), train.random_source("generation/tune", 3)
    config = small(steps=4, warmup=2, starts=(0.5,), weight_decay=0.1)
    before = deepcopy(base.state_dict())
    tuned, _ = train.tune(base, GENERATION, placement, 3, config)
    latents, losses = LatentTokens(placement, 16), []
    latents.initialize(base.token_embedding, torch.Generator().manual_seed(3))
    assert (latents.vectors[0] - latents.vectors[1]).abs().mean() > 0.01
    by_hand = Muon(latents.parameters(), {"lr": 0.5, "weight_decay": 0.1})
    for share in (0.5, 0.75, 0.5, 0.25):
        by_hand.param_groups[0]["lr"] = 0.5 * share
        length = rng.choice(GENERATION.id_lengths)
        batch = train.to_batch(placement, [draw(GENERATION, length, "tune", rng)
                                           for _ in range(4)])
        loss = train.response_loss(base, latents, batch)
        latents.vectors.grad, = torch.autograd.grad(loss, [latents.vectors])
        by_hand.step()
        losses.append(loss.item())
    torch.testing.assert_close(tuned.latents.vectors, latents.vectors)
    assert tuned.losses == pytest.approx(losses)
    examples = draw_examples(GENERATION, GENERATION.id_lengths, "validation", 3, 6)
    assert tuned.validation_loss == pytest.approx(train.response_loss(
        base, latents, train.to_batch(placement, examples)).item())
    assert all(torch.equal(before[name], after) for name, after in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_the_losses_of_a_base_are_kept(tmp_path, monkeypatch):
    """Every tenth; one that is no number is None, as JSON has none."""
    assert train.curve([nan, *[2.0] * 9, 1.23456]) == [None, 1.2346]
    monkeypatch.setitem(train.FAST_PRETRAIN, "steps", 21)
    config = PretrainConfig(**GENERATION.pretraining | train.FAST_PRETRAIN)
    notes = train.frozen_base(GENERATION, config, 0, tmp_path / "base.pt", "cpu").notes
    model, losses = train.pretrain(GENERATION, config, 0, "cpu")
    assert notes["losses"] == train.curve(losses) and len(losses) == 21
    assert losses[-1] < losses[0] == pytest.approx(torch.tensor(float(len(TOKEN_ID))).log())


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_students_own_bug_shows_its_traceback(error, tmp_path, monkeypatch):
    monkeypatch.setattr(GENERATION, "document", Mock(side_effect=error("of the student's own")))
    with pytest.raises(error, match="of the student's own"):
        run(tmp_path)
