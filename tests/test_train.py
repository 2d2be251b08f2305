"""The script as a user meets it: whole small runs, interruptions, mistakes on the command line."""

from contextlib import nullcontext
import json
from pathlib import Path
import random

import pytest
import torch
import torch.nn.functional as F

from extras import controls, optimizers, testbeds
from latent_tokens import LatentTokens, Placement
from tasks import ALPHABET, TASKS, TOKEN_ID, Example, Score, Task
import train
from train import METHODS, REFERENCES, Method, PretrainConfig, TuneConfig

pytestmark = pytest.mark.usefixtures("tiny")
KEYS = ("task", "method", "base", "seed", "length")


def run(out: Path, *arguments: str) -> list[dict]:
    train.main(["--fast", "--device", "cpu", "--out", str(out), *arguments])
    return rows_in(out)


def rows_in(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


def refusal(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.split("\r")[-1].strip().splitlines()  # after cleared bars
    assert len(lines) == 1
    return lines[0]


def tiny_base(path: Path, steps: int = 2, **settings):
    config = PretrainConfig(**train.FAST_PRETRAIN | {"steps": steps} | settings)
    return train.pretrain(TASKS["generation"], config, path, "cpu")


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ------------------------------------------------------------------------ whole runs

@pytest.mark.parametrize("task", METHODS)
def test_a_run_has_a_row_for_all_that_was_tested(task, tmp_path):
    """Bug caught: a method, seed or length that is missing, or tested twice."""
    rows = run(tmp_path, "--task", task, "--seeds", "2")
    methods = ["base", "instruction", "reminders", *METHODS[task]]
    lengths = range(1, 6) if task == "generation" else TASKS[task].test_lengths
    expected = {(task, method, 0, seed, length)
                for method in methods for seed in (0, 1) for length in lengths}
    assert {tuple(row[key] for key in KEYS) for row in rows} == expected
    assert len(rows) == len(expected)


def test_a_run_leaves_its_files(tmp_path):
    """Bug caught: a file that is missing at the end, or a temporary one that is left."""
    run(tmp_path, "--methods", "Comma_4", "full")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", "generation-base0.pt", "latents", "results.json"}
    assert [path.name for path in (tmp_path / "latents").iterdir()] == \
        ["generation-base0-Comma_4-seed0.pt"]


@pytest.mark.parametrize("task", METHODS)
def test_all_methods_of_a_table_train_equally_many_numbers(task):
    """Bug caught: a budget that favors a method."""
    assert len({Method.parse(name).placement.total for name in METHODS[task]}) == 1


def test_rows_say_what_was_trained(tmp_path):
    """Bug caught: references that are counted as trained, or a base that was."""
    trained = {row["method"]: row["trainable_parameters"]
               for row in run(tmp_path, "--methods", "Start_2", "full")}
    base = sum(weights.numel() for weights in tiny_base(tmp_path / "other.pt").parameters())
    assert trained == {"base": 0, "instruction": 0, "reminders": 0, "Start_2": 32, "full": base}


def test_the_printed_table(tmp_path, capsys):
    """Bug caught: a method that is left out, or means over the wrong lengths."""
    rows = run(tmp_path, "--task", "summation", "--methods", "Start_2")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    far = [row["exact"] for row in rows if row["method"] == "Start_2" and row["length"] == 20]
    assert ["summation,", "exact", "ID", "OOD", "far", "OOD"] in lines
    assert [line[-1] for line in lines if line[:1] == ["Start_2"]] == [f"{far[0]:.2f}"]


def test_a_second_run_reuses_everything_and_can_add_to_it(finished):
    """Bug caught: work done twice, or rows lost when another method is added."""
    first = rows_in(finished)
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")}
    more = run(finished, "--methods", "Start_2", "8_2-own")
    assert more[:len(first)] == first
    assert {row["method"] for row in more[len(first):]} == {"8_2-own"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_same_seed_same_result(tmp_path):
    """Bug caught: draws or initial values that no seed rules."""
    one, two = (run(tmp_path / folder, "--methods", "Comma_4") for folder in "ab")
    assert one == two
    name = "latents/generation-base0-Comma_4-seed0.pt"
    one, two = (LatentTokens.load(tmp_path / folder / name, 16) for folder in "ab")
    assert torch.equal(one.vectors, two.vectors)


# ------------------------------------------------------------------------ methods

@pytest.mark.parametrize("name", [*REFERENCES, "Comma_4", "Start_1+Comma_1-own"])
def test_a_methods_name_is_read_back(name):
    """Bug caught: a row that another command does not recognize, and tunes again."""
    assert str(Method.parse(name)) == name


def test_a_control_keeps_the_name_of_its_placement():
    """Bug caught: altered latents whose rows join those of the tuned ones."""
    assert str(Method(Placement.parse("Comma_4"), control="random")) == "Comma_4:random"


# ------------------------------------------------------------------------ training

@pytest.mark.parametrize("step, share", [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0), (75, 0.5),
                                         (99, 0.02)])
def test_the_learning_rate_by_hand(step, share):
    """10 steps up, then flat, then down over the last half of 100. Bug caught: off by one."""
    config = PretrainConfig(steps=100, warmup=10, decay=0.5)
    assert train.learning_rate(step, config) == pytest.approx(share)


def test_the_learning_rate_reaches_the_optimizer():
    """Bug caught: a rate that multiplies the last one in place of the peak."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.2)
    for share in (0.5, 0.5):
        train.set_learning_rate(optimizer, share)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_every_weight_has_one_optimizer(model):
    """Bug caught: weights that no optimizer trains, or that two do."""
    groups = [optimizer.param_groups[0]["params"]
              for optimizer in train.make_optimizers(model, PretrainConfig())]
    ids = [id(weights) for group in groups for weights in group]
    assert sorted(ids) == sorted(map(id, model.parameters()))


def test_tuning_leaves_the_base_bit_identical(tmp_path):
    """Bug caught: an optimizer or a gradient that reaches the frozen base."""
    base = tiny_base(tmp_path / "base.pt")
    before = bits(base)
    config = TuneConfig(steps=3, batch_size=4, validation_examples=5)
    model, _, _ = train.tune_best(base, TASKS["generation"], Method.parse("Comma_2"), 0, config)
    assert model is base and equal(before, bits(base))
    assert all(parameter.grad is None for parameter in base.parameters())


def test_tuning_moves_every_latent(tmp_path):
    """Bug caught: latents that are not trained at all."""
    base = tiny_base(tmp_path / "base.pt")
    start = LatentTokens(Placement.parse("Comma_2"), 16)
    start.initialize(base.token_embedding, torch.Generator().manual_seed(0))
    _, latents = train.tune(base, TASKS["generation"], Method.parse("Comma_2"), 1.0, 0.05, 0,
                            TuneConfig(steps=3, batch_size=4))
    assert not torch.isclose(latents.vectors, start.vectors).all(dim=1).any()


def test_the_best_rate_and_weight_decay_are_kept(tmp_path):
    """Bug caught: the last trial, or the worst; vectors of one with the record of another."""
    config = TuneConfig(steps=3, batch_size=4, validation_examples=5,
                        trials=((2.0, 0.05), (1e-3, 0.05), (2.0, 0.2)))
    base, task = tiny_base(tmp_path / "base.pt"), TASKS["generation"]
    method = Method.parse("Start_2")
    _, latents, record = train.tune_best(base, task, method, 0, config)
    tried = [(trial["lr"], trial["weight_decay"]) for trial in record["trials"]]
    assert tried == [(2.0, 0.05), (1e-3, 0.05), (2.0, 0.2)]
    assert record["validation_loss"] == min(each["validation_loss"] for each in record["trials"])
    _, again = train.tune(base, task, method, record["lr"], record["weight_decay"], 0, config)
    assert torch.equal(latents.vectors, again.vectors)


def test_full_tuning_changes_a_copy(tmp_path):
    """Bug caught: fine-tuning that spoils the base for every method after it."""
    base = tiny_base(tmp_path / "base.pt")
    before = bits(base)
    model, _ = train.tune(base, TASKS["generation"], Method(full=True), 1e-3, 0.05, 0,
                          TuneConfig(steps=2, batch_size=4))
    assert equal(before, bits(base)) and not equal(before, bits(model))


# ------------------------------------------------------------------------ what a base can do

@pytest.mark.parametrize("character, count, expected", [
    ("G", 100, 1.0), ("=", 25, 0.75), ("@", 100, 0.0)])
def test_the_skill_of_a_base(character, count, expected, model, monkeypatch):
    """A model that writes the true answers, but in ``count`` of 100 a ? for this character. Bug
    caught: a base that is asked to write headers (G+-9:), or items counted for answers."""
    def logits(model, latents, batch):
        answers = batch.targets.clamp(min=0)  # (100, R), one of two, padded with anything
        answers[:count][answers[:count] == TOKEN_ID[character]] = TOKEN_ID["?"]
        return F.one_hot(answers, len(ALPHABET))

    monkeypatch.setattr(train, "response_logits", logits)
    assert train.skill(model, TASKS["generation"], 200) == pytest.approx(expected)


@pytest.mark.parametrize("able, refused", [(0.94, True), (0.95, False)])
def test_a_base_without_its_skill_is_refused(able, refused, tmp_path, monkeypatch):
    """First it is made, then read. Bug caught: a skill measured before the last step, or a base
    that the second command takes or trains on."""
    measured = []
    monkeypatch.setattr(train, "skill", lambda model, *_: measured.append(bits(model)) or able)
    for _ in ("made", "read"):
        with pytest.raises(train.Unskilled, match="only 94%") if refused else nullcontext():
            tiny_base(tmp_path / "base.pt", needed_skill=0.95, repeats=0)
        assert equal(measured[-1], torch.load(tmp_path / "base.pt")["model"])
    assert len(measured) == 1


def test_a_finished_base_stays_as_it_is(tmp_path, monkeypatch):
    """Bug caught: a base that reached its skill by a hair, and on a machine that rounds otherwise
    trains on, under the rows that were made with it."""
    monkeypatch.setattr(train, "skill", lambda *_: 0.95)
    made = bits(tiny_base(tmp_path / "base.pt", needed_skill=0.95))
    monkeypatch.setattr(train, "skill", lambda *_: 0.94)
    assert equal(made, bits(tiny_base(tmp_path / "base.pt", needed_skill=0.95)))


def test_other_bases_go_on_without_the_one_that_lacks_its_skill(tiny, tmp_path, monkeypatch,
                                                                capsys):
    """Bug caught: rows of latents on a base that cannot do the task, or none of the others."""
    monkeypatch.setitem(train.FAST_PRETRAIN, "needed_skill", 0.95)
    monkeypatch.setitem(train.FAST_PRETRAIN, "repeats", 0)
    able = iter([0.5, 0.95])
    monkeypatch.setattr(train, "skill", lambda *_: next(able))
    line = refusal(capsys, "--fast", "--out", str(tmp_path), "--methods", "Start_1",
                   "--bases", "3", "4")
    assert "generation-base3.pt answers only 50% of 300 queries" in line and "--bases" in line
    assert {row["base"] for row in rows_in(tmp_path)} == {4}


@pytest.mark.parametrize("able, end", [([0.95], 5), ([0.94, 0.95], 8), ([0.0, 0.9, 0.9], 11)])
def test_a_base_without_its_skill_repeats_the_second_half(able, end, tmp_path, monkeypatch, capsys):
    """Steps 2-4 of five again, on new text. Bug caught: a base that stops without its skill, goes
    on with it, sees its text twice, or goes on at a rate of zero."""
    texts, rates, left = [], [], iter(able)
    source, rate = train.random_source, train.learning_rate
    monkeypatch.setattr(train, "skill", lambda *_: next(left))
    monkeypatch.setattr(train, "random_source", lambda *key: texts.append(key) or source(*key))
    monkeypatch.setattr(train, "learning_rate",
                        lambda step, config: rates.append(step) or rate(step, config))
    with nullcontext() if able[-1] == 0.95 else pytest.raises(train.Unskilled):
        tiny_base(tmp_path / "base.pt", steps=5, needed_skill=0.95, repeats=2)
    assert torch.load(tmp_path / "base.pt")["step"] == end and not list(left)
    assert rates[::2] == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4][:end]  # for each of two optimizers
    assert [key for key in texts if key[0] != "checksum"] == \
        [(f"generation/pretrain/{step}", 0) for step in range(end)]
    assert ("base.pt answers only 94% of 300 queries" in capsys.readouterr().out) == (end == 8)


# ------------------------------------------------------------------------ interruptions

def interrupt(monkeypatch, function: str, when):
    """Ctrl-C in a function of train.py, at the first call for which ``when(*arguments)`` holds."""
    original = getattr(train, function)

    def interrupted(*arguments):
        if when(*arguments):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, function, interrupted)


def test_interrupted_pretraining_goes_on_where_it_stood(tmp_path, monkeypatch):
    """Bug caught: a resumed base that saw other text, rates or momenta than an unstopped one."""
    whole = tiny_base(tmp_path / "whole.pt", steps=52)
    with monkeypatch.context() as patch:
        interrupt(patch, "learning_rate", lambda step, config: step == 51)
        with pytest.raises(KeyboardInterrupt):
            tiny_base(tmp_path / "resumed.pt", steps=52)
    assert torch.load(tmp_path / "resumed.pt")["step"] == 50
    assert equal(bits(whole), bits(tiny_base(tmp_path / "resumed.pt", steps=52)))


def test_a_base_stopped_before_its_skill_is_measured_does_not_repeat_steps(tmp_path, monkeypatch):
    """Bug caught: a base saved at its last step, without its skill, that counts as lacking it."""
    with monkeypatch.context() as patch:
        interrupt(patch, "skill", lambda model, task, count: count == 300)
        with pytest.raises(KeyboardInterrupt):
            tiny_base(tmp_path / "base.pt", steps=100, needed_skill=0.95)
    monkeypatch.setattr(train, "skill", lambda *_: 1.0)
    tiny_base(tmp_path / "base.pt", steps=100, needed_skill=0.95)
    assert torch.load(tmp_path / "base.pt")["step"] == 100


def test_interrupted_repeats_go_on_where_they_stood(tmp_path, monkeypatch):
    """The skill was lacking after 40 steps. Bug caught: a base resumed after 50, where it would
    pass, that counts as finished, or one that is finished and goes on."""
    ends = []

    def skill(model, *_):
        ends.append(bits(model))
        return 1.0 - equal(ends[0], ends[-1])

    monkeypatch.setattr(train, "skill", skill)
    whole = bits(tiny_base(tmp_path / "whole.pt", steps=40, needed_skill=0.95))
    assert len(ends) == 2
    with monkeypatch.context() as patch:
        interrupt(patch, "pretraining_loss", lambda model, task, step, config: step == 55)
        with pytest.raises(KeyboardInterrupt):
            tiny_base(tmp_path / "resumed.pt", steps=40, needed_skill=0.95)
    assert torch.load(tmp_path / "resumed.pt")["step"] == 50
    for _ in ("resumed", "read"):
        assert equal(whole, bits(tiny_base(tmp_path / "resumed.pt", steps=40, needed_skill=0.95)))
    assert torch.load(tmp_path / "resumed.pt")["step"] == 60


def test_interrupted_tuning_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    """Bug caught: Ctrl-C in the second method that costs the first."""
    with monkeypatch.context() as patch:
        interrupt(patch, "tune", lambda base, task, method, *_: str(method) == "End_4")
        with pytest.raises(SystemExit) as stop:
            run(tmp_path)
    assert stop.value.code == 130
    assert "same command goes on" in capsys.readouterr().err
    kept = rows_in(tmp_path)
    assert {row["method"] for row in kept} == {"base", "instruction", "reminders", "Start_4"}
    assert run(tmp_path)[:len(kept)] == kept


# ------------------------------------------------------------------------ mistakes

@pytest.mark.parametrize("arguments, message", [
    (["--methods", "Comma_0"], "unknown placement 'Comma_0': expected Start_m, End_m, Comma_m"),
    (["--methods", "Start_2", "Middle_2"], "unknown placement 'Middle_2'"),
    (["--methods", "Comma_4:random"], "unknown placement 'Comma_4:random'"),
    (["--task", "division"], "choose from"),
    (["--device", "abacus"], "--device: invalid choice: 'abacus' (choose from "),
    (["--steps", "0"], "--seeds and --steps must be positive"),
    (["--bases", "0", "-1"], "--bases not negative"),
    (["--steps", "many"], "invalid int value: 'many'"),
    (["--unknown"], "unrecognized arguments"),
])
def test_mistakes_get_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    """Bug caught: a typing error found out after minutes of pre-training."""
    assert message in refusal(capsys, "--out", str(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, KeyError])
def test_a_students_own_bug_shows_its_traceback(error, tmp_path, monkeypatch):
    """Bug caught: errors of edited code that are printed as if the user had mistyped something."""
    def document(rng, progress):
        raise error("of the student's own")

    monkeypatch.setattr(TASKS["generation"], "document", document)
    with pytest.raises(error, match="of the student's own"):
        run(tmp_path)


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_paths_that_cannot_be_used_are_refused(folder, tmp_path, capsys):
    """Bug caught: an --out found unusable only when there is something to save."""
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be used" in refusal(capsys, "--fast", "--out", str(tmp_path / folder))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_other_settings_do_not_overwrite_a_run(finished, monkeypatch, capsys):
    """Bug caught: minutes of work lost to a forgotten --out."""
    before = {path: path.read_bytes() for path in finished.rglob("*.*")}
    monkeypatch.setattr(train, "FAST_TUNE", train.FAST_TUNE | {"batch_size": 16})
    line = refusal(capsys, "--fast", "--out", str(finished))
    assert "was made with batch_size = 4, this run asks for 16" in line
    assert before == {path: path.read_bytes() for path in finished.rglob("*.*")}


def test_a_base_is_not_reused_for_another_text(finished, monkeypatch, capsys):
    """Bug caught: an edited ``document`` (as in docs/exercises.md) that changes nothing, even
    where the edit shows only every now and then."""
    document, count = TASKS["generation"].document, iter(range(10_000))
    monkeypatch.setattr(TASKS["generation"], "document", lambda rng, progress: (
        document(rng, progress) if next(count) != 80 else "44@47=83,;"))
    line = refusal(capsys, "--fast", "--out", str(finished))
    assert "generation-base0.pt was pre-trained on another text than tasks.py makes now" in line


@pytest.mark.parametrize("name, message", [("generation-base0.pt", "is not a readable base"),
                                           ("results.json", "is not a readable file of results")])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe nonsense", b"[]"])
def test_damaged_files_are_refused(name, message, content, finished, capsys):
    """Bug caught: a damaged file that ends in a traceback, or is overwritten."""
    (finished / name).write_bytes(content)
    assert f"{name} {message}" in refusal(capsys, "--fast", "--out", str(finished))
    assert (finished / name).read_bytes() == content


# ------------------------------------------------------------------------ a task of one's own

LETTERS = "abcdefghijklmnopqrstuvwyz"


class Echo(Task):
    """The example of docs/add_a_task.md: write two letters ``length`` times, or twice as often."""

    name, letter = "echo", "x"
    target_rule, plain_rule, rules = "2", "1", ("1", "2")
    id_lengths, ood_lengths, far_lengths = range(1, 4), range(4, 7), range(5, 7)
    test_lengths = range(1, 7)

    def example(self, rng: random.Random, length: int) -> Example:
        letters = rng.choice(LETTERS) + rng.choice(LETTERS)
        return Example(f"{letters}{length}>", letters * 2 * length + ";")

    def score(self, example: Example, text: str) -> dict[int, Score]:
        exact = text == example.response
        return {int(example.query[2]): Score(float(exact), exact)}

    def document(self, rng: random.Random, progress: float) -> str:
        rule, header = self.restate(rng, 0.5, self.plain_rule, self.any_rule)
        letters, length = rng.choice(LETTERS) + rng.choice(LETTERS), rng.randint(1, 6)
        return f"{header}{letters}{length}>{letters * int(rule) * length};"


def test_adding_a_task(tmp_path, monkeypatch):
    """One class and its registration make a task that the script runs from end to end."""
    monkeypatch.setitem(TASKS, "echo", Echo())
    rows = run(tmp_path, "--task", "echo")
    assert {(row["task"], row["length"]) for row in rows} == {("echo", n) for n in range(1, 7)}
    assert "Comma_4" in {row["method"] for row in rows}


# ------------------------------------------------------------------------ extras/controls.py

def some_latents() -> LatentTokens:
    latents = LatentTokens(Placement.parse("Start_1+Comma_2"), 4)
    torch.nn.init.normal_(latents.vectors)
    return latents


def test_shuffled_latents():
    """Bug caught: vectors that stay in their places."""
    latents = some_latents()
    altered = controls.alter(latents, "shuffled", seed=0)
    assert torch.equal(altered.vectors, latents.vectors[[2, 0, 1]])
    assert altered.placement == latents.placement


def test_removed_latents():
    """Bug caught: a group that goes, but not its vectors, or the wrong ones."""
    latents = some_latents()
    altered = controls.alter(latents, "removed", seed=0)
    assert str(altered.placement) == "Start_1"
    assert torch.equal(altered.vectors, latents.vectors[:1])


def test_random_latents():
    """Bug caught: a control that tests the tuned latents after all, or counts as trained."""
    latents = some_latents()
    altered = controls.alter(latents, "random", seed=0)
    assert torch.allclose(altered.vectors.norm(dim=1), latents.vectors.norm(dim=1))
    assert not torch.isclose(altered.vectors, latents.vectors).any()
    assert not altered.vectors.requires_grad


@pytest.mark.parametrize("task", controls.TUNED)
def test_controls_insert_as_many_latents_as_the_proposed_method(task):
    """Bug caught: a token-matched baseline with fewer tokens than what it is to match."""
    placement = Placement.parse(controls.TUNED[task][0].removesuffix("-own"))
    longest = {"generation": (5, 24), "repetition": (8, 20), "summation": (12, 26)}[task]
    for length in longest:
        inserted = train.latents_inserted(TASKS[task], placement, length)
        assert {f"Start_{inserted}", f"End_{inserted}"} <= set(controls.TUNED[task])


def test_other_rules_of_a_family():
    """Bug caught: a rule that is left out, or the target rule among the others."""
    for name, count in {"generation": 53, "repetition": 3, "summation": 2}.items():
        found = [other.target_rule for other in controls.other_rules(TASKS[name])]
        assert len(found) == len(set(found)) == count
        assert TASKS[name].target_rule not in found


def test_rows_of_other_rules_are_means(model, monkeypatch):
    """Bug caught: the examples or scores of one rule taken for those of all, lengths mixed up."""
    def tested(model, latents, task, method, seed, config):
        assert config.test_examples == 3  # of ten
        right = float(task.target_rule == "+1")
        return [{"length": length, "accuracy": right, "exact": right / length} for length in (1, 2)]

    monkeypatch.setattr(controls, "test", tested)
    rows = controls.follow_other_rules(model, None, TASKS["repetition"], train.REFERENCES["base"],
                                       0, TuneConfig(test_examples=10))
    assert rows == [{"length": 1, "accuracy": pytest.approx(1 / 3), "exact": pytest.approx(1 / 3)},
                    {"length": 2, "accuracy": pytest.approx(1 / 3), "exact": pytest.approx(1 / 6)}]


def test_control_rows_join_the_run(finished, monkeypatch):
    """Bug caught: a control without rows, or one that is not tested on the base's examples."""
    few = controls.other_rules(TASKS["generation"])[:2]
    monkeypatch.setattr(controls, "other_rules", lambda task: few)
    names = ["Comma_1-own", "Comma_1:removed", "full"]
    controls.main([str(finished), "--task", "generation", "--rows", *names])
    rows = {tuple(row[key] for key in KEYS): row for row in rows_in(finished)}
    for length in range(1, 6):  # without its only group Comma_1 is the base
        removed = rows["generation", "Comma_1:removed", 0, 0, length]
        assert removed | {"method": "base"} == rows["generation", "base", 0, 0, length]
    trained = {row["method"]: row["trainable_parameters"] for row in rows.values()}
    assert set(names) <= set(trained)
    for name in ("instruction", "reminders"):
        assert trained[f"{name}, other rules, before full"] == 0
        assert trained[f"{name}, other rules, after full"] == trained["full"] > 0


def test_all_controls_are_asked_for_by_default():
    """Bug caught: a table of controls whose rows are never made."""
    rows = controls.all_rows(TASKS["repetition"])
    assert {"End_4", "Start_44", "Start_2+Comma_2:removed", "full"} <= set(rows)


# ------------------------------------------------------------------------ variants and optimizers

@pytest.fixture
def variants(monkeypatch):
    """The variants, for the time of one test."""
    tables = [(TASKS, TASKS.copy()), (METHODS, METHODS.copy()),
              (train.PRETRAINING, train.PRETRAINING.copy())]
    testbeds.register()
    yield TASKS
    for table, before in tables:
        table.clear()
        table.update(before)


def test_the_dial_restates_as_often_as_it_says(variants):
    """Bug caught: a dial that turns nothing, or turns the statement at the start as well."""
    for name, probability in (("generation-0", 0), ("generation-0.4", 0.4)):
        rng, boundaries, restated = random.Random(0), 0, 0
        for _ in range(2000):
            text = variants[name].document(rng, 1.0)
            boundaries += text.count(",") - 1
            restated += text.count(",G")
        assert restated / boundaries == pytest.approx(0.75 * probability, abs=0.02)
    assert TASKS["generation"].restated == 0.5


def test_retrieval_has_short_lists_and_states_nothing(variants):
    """Bug caught: a base that has seen the lengths it is tested on, or other rules."""
    rng = random.Random(0)
    for _ in range(300):
        listed, asked = variants["retrieval"].document(rng, 1.0).split("?")
        assert "S" not in listed + asked and 2 <= listed.count("=") <= 12


def test_variants_run_as_tasks(variants, tmp_path):
    """Bug caught: a variant that the script does not know."""
    assert {row["task"] for row in run(tmp_path, "--task", "generation-0.4")} == {"generation-0.4"}


def test_optimizers_add_a_row_for_each_rate(tmp_path, finished, monkeypatch):
    """Bug caught: every rate under one name, or AdamW that is Muon."""
    monkeypatch.setattr(optimizers, "RATES", {"Muon": (1.0,), "AdamW": (0.1, 1.0)})
    before = len(rows_in(finished))
    optimizers.main([str(finished), "--methods", "Start,Comma_2"])
    names = {row["method"] for row in rows_in(finished)[before:]}
    assert names == {f"Start,Comma_2:{each}" for each in ("Muon-1", "AdamW-0.1", "AdamW-1")}
    base, task = tiny_base(tmp_path / "other.pt"), TASKS["generation"]
    tuned = [train.tune(base, task, Method.parse("Start_2"), 1.0, 0.05, 0,
                        TuneConfig(steps=2, batch_size=4, optimizer=name))[1].vectors
             for name in ("Muon", "AdamW")]
    assert not torch.allclose(*tuned)


def test_the_bar_over_all_counts_every_stage():
    """Bug caught: a bar that ends before the run, or never at 100 %."""
    args = train.make_parser().parse_args("--task all --bases 3 4 --seeds 2".split())
    methods = {task: [Method(), Method.parse("Start_2")] for task in TASKS.values()}
    assert train.count_stages(methods, args) == len(TASKS) * 2 * (1 + 2 * 2)


def test_what_a_real_run_takes():
    """Bug caught: steps of one part counted for another, or testing scaled like tuning."""
    args = train.make_parser().parse_args(["--fast", "--seeds", "2"])
    methods = {TASKS["generation"]: [Method.parse(name) for name in ("base", "Start_4")]}
    seconds = {"generation, base 0, pre-training": 2.0, "generation, base 0, base, seed 0": 1.0,
               "generation, base 0, base, seed 1": 1.0, "generation, base 0, Start_4, seed 0": 4.0,
               "generation, base 0, Start_4, seed 1": 4.0}
    testing, tuning = 4 * 1.0, 2 * 3.0
    assert train.real_minutes(seconds, methods, args) == pytest.approx(
        (2.0 * 900 / train.FAST_PRETRAIN["steps"] + testing * train.TESTING
         + tuning * 300 / train.FAST_TUNE["steps"]) / 60)
