"""The script as a user meets it: whole small runs, what each phase draws, tuning by hand."""

from functools import partial
from pathlib import Path

import pytest
import torch

from latent_tokens import LatentTokens, Placement
from model import GPT
import tasks
from tasks import TASKS, decode, purpose_of
import train
from train import Muon, PretrainConfig, TuneConfig

pytestmark = pytest.mark.usefixtures("tiny")


def run(out, *arguments: str) -> list[dict]:
    train.main(["--fast", "--device", "cpu", "--out", str(out), *arguments])
    return train.read_results(out / train.RESULTS)


def tiny_config(**settings) -> PretrainConfig:
    return PretrainConfig(**train.FAST_PRETRAIN | settings)


@pytest.fixture
def base() -> GPT:
    return train.pretrain(TASKS["generation"], tiny_config(), "cpu").requires_grad_(False)


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# -------------------------------------------------------------------------------------- whole runs

@pytest.mark.parametrize("name", TASKS)
def test_a_run_has_a_line_for_each_method_and_seed(name, tmp_path):
    rows, task = run(tmp_path, "--task", name, "--seeds", "2"), TASKS[name]
    methods = [*train.REFERENCES, *task.claim.baselines, *task.claim.proposed]
    expected = [(name, 0, method, seed) for seed in (0, 1) for method in methods]
    assert [(row["task"], row["base"], row["method"], row["seed"]) for row in rows] == expected
    for row in rows:
        lengths = list(range(1, 6)) if name == "generation" else list(task.test_lengths)
        assert row["lengths"] == lengths
        assert len(row["accuracy"]) == len(row["exact"]) == len(lengths)


def test_a_run_leaves_its_files_and_no_others(tmp_path):
    run(tmp_path, "--methods", "Comma_4")
    assert {path.name for path in tmp_path.iterdir()} == {
        "generation-base0.pt", "latents", "results.jsonl"}
    assert [path.name for path in (tmp_path / "latents").iterdir()] == [
        "generation-base0-Comma_4-seed0.pt"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_all_methods_of_a_task_train_equally_many_numbers(task):
    names = task.claim.baselines + task.claim.proposed
    assert len({Placement.parse(name).total for name in names}) == 1


def test_a_line_says_what_was_trained_and_inserted(tmp_path):
    rows = {row["method"]: row for row in run(tmp_path, "--methods", "Start_2", "Comma_1")}
    assert [rows[method]["trained"] for method in rows] == [0, 0, 0, 32, 16]
    assert [rows[method]["inserted"] for method in rows] == [0, 0, 0, 2, 5]
    for method, trials in (("base", 0), ("Start_2", 3)):
        assert len(rows[method]["trials"]) == trials


def test_the_printed_table_has_means_over_lengths_bases_and_seeds(capsys):
    """Each metric and split by itself; a length may be in two splits."""
    rows = [{"method": method, "lengths": [1, 5, 6, 16], "exact": [0.0] * 4,
             "splits": {"ID": [1, 5], "OOD": [6, 24], "far OOD": [16, 24]}, "accuracy": accuracy}
            for method, accuracy in (("Start_4", [1.0, 0.8, 0.5, 0.0]), ("Comma_4", [1.0] * 4),
                                     ("Start_4", [1.0, 0.6, 0.5, 0.1]))]
    train.print_table(TASKS["generation"], rows, ("accuracy", "exact"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [["generation,", "accuracy", "ID", "OOD", "far", "OOD"],
                     ["Start_4", "0.85", "0.28", "0.05"], ["Comma_4", "1.00", "1.00", "1.00"],
                     [], ["generation,", "exact", "ID", "OOD", "far", "OOD"],
                     ["Start_4", "0.00", "0.00", "0.00"], ["Comma_4", "0.00", "0.00", "0.00"]]


def test_the_same_seed_gives_the_same_result(tmp_path):
    one, two = (run(tmp_path / folder, "--methods", "Comma_4") for folder in "ab")
    assert [row | {"seconds": 0} for row in one] == [row | {"seconds": 0} for row in two]


# ------------------------------------------------------------------- what is drawn for which phase

def test_each_phase_sees_its_own_queries_and_lengths(tmp_path, monkeypatch):
    """Tuning and the choice of a trial see in-distribution lengths; nobody sees another's query."""
    seen = {"tune": [], "validation": [], "test": []}
    loss, generate = train.response_loss, train.generate

    def watched_loss(model, latents, batch):
        value = loss(model, latents, batch)
        seen["tune" if value.requires_grad else "validation"] += [
            decode(row).rstrip(";") for row in batch.token_ids.tolist()]  # padding is token 0, ;
        return value

    def watched_generate(model, latents, queries, max_new_tokens, *rest):
        seen["test"] += [decode(query) + "," * (max_new_tokens // 9) for query in queries]
        return generate(model, latents, queries, max_new_tokens, *rest)

    monkeypatch.setattr(train, "response_loss", watched_loss)
    monkeypatch.setattr(train, "generate", watched_generate)
    monkeypatch.setitem(train.FAST_TUNE, "steps", 8)
    monkeypatch.setattr(train, "REFERENCES", ("base",))
    run(tmp_path, "--methods", "Start_1")
    for purpose, texts in seen.items():
        assert {purpose_of(text[:8]) for text in texts} == {purpose}
        lengths = {text.count(",") for text in texts}
        assert lengths == ({5} if purpose == "test" else {1, 2})
    assert len(seen["tune"]) == 3 * 8 * 4 and len(seen["validation"]) == 3 * 8


def test_a_trial_is_chosen_by_its_validation_loss(base):
    config = TuneConfig(steps=3, batch_size=4, validation_examples=5,
                        trials=((1e-3, 0.05), (2.0, 0.05), (1e-3, 0.2)))
    task, placement = TASKS["generation"], Placement.parse("Start_2")
    latents, trials = train.tune(base, task, placement, 0, config)
    assert [(each["lr"], each["weight_decay"]) for each in trials] == list(config.trials)
    best = min(config.trials, key=dict(zip(
        config.trials, (each["validation_loss"] for each in trials))).get)
    again, _ = train.tune(base, task, placement, 0, TuneConfig(
        steps=3, batch_size=4, validation_examples=5, trials=(best,)))
    assert torch.equal(latents.vectors, again.vectors)


# ------------------------------------------------------------------------------- training, by hand

@pytest.mark.parametrize("step, share", [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0), (75, 0.5),
                                         (99, 0.02)])
def test_the_learning_rate_by_hand(step, share):
    """10 steps up, then flat, then down over the last half of 100; always a share of the peak."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.2)
    for _ in range(2):
        train.set_learning_rate(optimizer, step, PretrainConfig(steps=100, warmup=10, decay=0.5))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * share)


@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (8, 8)])
def test_muon_is_the_one_of_torch_in_float32(shape, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (Muon([ours], lr=0.1, weight_decay=0.3),
                  torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3))
    for step in range(4):
        for weights, optimizer in zip((ours, theirs), optimizers):
            weights.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, start, atol=0.1)


def test_every_weight_has_one_optimizer(model):
    groups = [optimizer.param_groups[0]["params"]
              for optimizer in train.make_optimizers(model, PretrainConfig())]
    ids = [id(weights) for group in groups for weights in group]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    assert all(weights.ndim == 2 for weights in groups[0]) and len(groups[0]) == 8


def test_tuning_is_this_loop(base):
    """Fresh gradients in each step, rates that fall to zero, weight decay, distinct noise."""
    task, placement = TASKS["generation"], Placement.parse("Comma_2")
    config = TuneConfig(steps=4, batch_size=4, warmup=2, validation_examples=5,
                        trials=((0.5, 0.1),))
    tuned, _ = train.tune(base, task, placement, 3, config)
    latents, rng = LatentTokens(placement, 16), train.random_source("generation/tune", 3)
    latents.initialize(base.token_embedding, torch.Generator().manual_seed(3))
    assert (latents.vectors[0] - latents.vectors[1]).abs().mean() > 0.01
    by_hand = Muon(latents.parameters(), lr=0.5, weight_decay=0.1)
    for share in (0.5, 0.75, 0.5, 0.25):
        by_hand.param_groups[0]["lr"] = 0.5 * share
        length = rng.choice(task.id_lengths)
        batch = train.to_batch(placement, [train.draw(task, length, "tune", rng)
                                           for _ in range(4)])
        loss = train.response_loss(base, latents, batch)
        latents.vectors.grad, = torch.autograd.grad(loss, [latents.vectors])
        by_hand.step()
    torch.testing.assert_close(tuned.vectors, latents.vectors)


def test_tuning_leaves_the_base_bit_identical(base):
    before = bits(base)
    train.tune(base, TASKS["generation"], Placement.parse("Comma_2"), 0,
               TuneConfig(steps=3, batch_size=4, validation_examples=5))
    assert equal(before, bits(base))
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_trial_that_diverges_is_not_chosen(base):
    config = TuneConfig(steps=3, batch_size=4, validation_examples=5,
                        trials=((1e30, 0.05), (1.0, 0.05)))
    latents, trials = train.tune(base, TASKS["generation"], Placement.parse("Start_1"), 0, config)
    assert trials[0]["validation_loss"] is None and latents.vectors.isfinite().all()


# ---------------------------------------------------------------------------- what a base can do

@pytest.mark.parametrize("name, words", [
    ("generation", "instruction"), ("repetition", "reminders"), ("summation", "reminders")])
def test_skill_is_the_share_of_exact_answers(name, words, model, monkeypatch):
    """Of lengths that are tuned on, with the rule in words. A writer errs in each fourth answer."""
    task = TASKS[name]

    def answers(base, latents, asked, method, examples):
        assert (asked, method, latents.placement) == (task, words, Placement())
        assert {purpose_of(each.query) for each in examples} == {"validation"}
        lengths = {length for each in examples for length in task.score(each, each.response)}
        assert lengths == set(task.id_lengths)
        return [each.response[:-1] if index % 4 == 3 else each.response
                for index, each in enumerate(examples)]

    monkeypatch.setattr(train, "answers", answers)
    assert train.skill(model, task) == pytest.approx(0.75)


@pytest.mark.parametrize("able", [0.89, 0.9])
def test_nothing_is_tuned_on_a_base_without_its_skill(able, tmp_path, monkeypatch, capsys):
    """The other base goes on; a second command neither trains the first again nor takes it."""
    monkeypatch.setitem(train.FAST_PRETRAIN, "needed_skill", 0.9)
    skills = iter([able, 0.9])
    monkeypatch.setattr(train, "skill", lambda *_: next(skills))
    for _ in ("made", "read"):
        again = partial(run, tmp_path, "--methods", "Start_1", "--bases", "3", "4")
        if able == 0.9:
            again()
        else:
            with pytest.raises(SystemExit):
                again()
            assert "with the rule in words 89%" in capsys.readouterr().err
    bases = {row["base"] for row in train.read_results(tmp_path / train.RESULTS)}
    assert bases == ({3, 4} if able == 0.9 else {4})


# ------------------------------------------------------------------------------ a task of one's own

def test_adding_a_task_takes_one_class(tmp_path, monkeypatch):
    """The one of docs/add_a_task.md, without an edit elsewhere."""
    text = (Path(train.__file__).parent / "docs" / "add_a_task.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].split("TASKS = ")[0]
    scope = dict(vars(tasks))
    exec(code, scope)
    task = scope["Digits"]()
    monkeypatch.setitem(TASKS, task.name, task)
    example = task.example(train.random_source("test", 0), 3)
    assert task.score(example, example.response)[3].exact
    assert not task.score(example, example.response[:-1])[3].exact
    assert [task.item("+9", "472"), task.after("+9", "472=6")] == ["472=6", "726=4"]
    rows = run(tmp_path, "--task", task.name)
    assert [row["method"] for row in rows] == [
        *train.REFERENCES, *task.claim.baselines, *task.claim.proposed]
    assert rows[0]["lengths"] == list(range(1, 25))


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, KeyError])
def test_a_students_own_bug_shows_its_traceback(error, tmp_path, monkeypatch):
    def document(rng, progress):
        raise error("of the student's own")

    monkeypatch.setattr(TASKS["generation"], "document", document)
    with pytest.raises(error, match="of the student's own"):
        run(tmp_path)
