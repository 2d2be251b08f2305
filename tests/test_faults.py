"""What goes wrong around a run: no finished line is lost, and every fault is one clear line."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
import json
import os
import re
import sys

import numpy
import pytest

from latent_tokens import LatentTokens
from model import GPT, weights_checksum
from tasks import TASKS, Claim, Example, Score
from tests import conftest
from tests.conftest import TINY_TUNE, refused
import train

pytestmark = pytest.mark.usefixtures("tiny")
GENERATION = TASKS["generation"]
ALL_ONES = {length: Score(1.0, True) for length in range(1, 6)}


def arguments(out, *methods: str) -> list[str]:
    return ["--fast", "--device", "cpu", "--out", str(out), "--methods", "Start_2", *methods]


def run(out, *methods: str) -> list[dict]:
    return conftest.run(out, "--methods", "Start_2", *methods)


def content(out) -> bytes:
    return (out / train.RESULTS).read_bytes()


def methods(rows: list[dict]) -> list[str]:
    return [row["method"] for row in rows]


def test_a_second_command_repeats_nothing_and_only_appends(finished):
    before = content(finished)
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")}
    rows = run(finished, "8_2-own", "Comma_1+Start_1", "Start_1+Comma_1", "Start_2")
    assert content(finished).startswith(before)
    assert methods(rows)[-1] == "8_2-own" and len(rows) == before.count(b"task_checksum") + 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with open(finished / train.RESULTS) as file:
        assert [json.loads(line) for line in file] == rows  # strict JSON Lines


@pytest.mark.parametrize("where, name, value", [
    (type(GENERATION), "test_lengths", (4,)), (type(GENERATION), "target_rule", "++5"),
    (type(GENERATION), "id_lengths", range(1, 4)), (type(GENERATION), "far_lengths", range(5, 6)),
    (type(GENERATION), "score", lambda self, example, text: (
        ALL_ONES if text else dict.fromkeys(ALL_ONES, Score(0.0, False)))),
    (train, "FAST_TUNE", TINY_TUNE | {"batch_size": 5})])
def test_a_line_of_another_experiment_is_neither_lost_nor_mixed_in(where, name, value, finished,
                                                                   monkeypatch, capsys):
    before = content(finished)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, value)
        run(finished)
        table = capsys.readouterr().out.split("OOD\n")[1].replace(",", "")
        assert content(finished).startswith(before)
        new = train.read_results(finished / train.RESULTS)[6:]
        assert methods(new) == ["base", "instruction", "reminders", "Start_2"]
        for row, line in zip(new, table.splitlines()):
            means = [train.split_means(row, metric)["ID"] for metric in GENERATION.claim.metrics]
            assert line.split()[:3] == [row["method"], *(f"{mean:.2f}" for mean in means)]
        run(finished)
    assert run(finished)[6:] == new


def test_another_base_has_lines_of_its_own(finished):
    """By its weights or, where these should be the same, by its settings."""
    base, path = GPT.load(finished / "generation-base60.pt"), finished / train.RESULTS
    path.write_bytes(content(finished).replace(b'"adam_lr": 0.003', b'"adam_lr": 0.004'))
    new = ["base", "instruction", "reminders", "Start_2"]
    assert methods(run(finished)[6:]) == new
    base.blocks[0].qkv.weight.data.add_(1e-3)
    base.save(finished / "generation-base60.pt")
    rows = run(finished)
    assert methods(rows[6:]) == new * 2 and rows[-1]["base_checksum"] == weights_checksum(base)


REWRITES = {
    "one type of number, and sorted": lambda text: b"".join(
        json.dumps(json.loads(line, parse_int=float), sort_keys=True).encode() + b"\n"
        for line in text.splitlines()),
    "byte-order mark": lambda text: b"\xef\xbb\xbf" + text,
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "no last newline": lambda text: text[:-1],
    "empty lines": lambda text: b"\n" + text.replace(b"\n", b"\n\n")}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_a_file_rewritten_by_another_tool_is_not_done_again(rewrite, finished, capsys):
    rows, rewritten = train.read_results(finished / train.RESULTS), rewrite(content(finished))
    (finished / train.RESULTS).write_bytes(rewritten)
    assert run(finished, "Comma_1") == rows and content(finished) == rewritten
    assert methods(run(finished, "End_1")) == [*methods(rows), "End_1"]
    assert "skipped" not in capsys.readouterr().err


def test_half_a_line_is_skipped_with_a_word_and_ends_no_other(finished, capsys):
    rows, path = train.read_results(finished / train.RESULTS), finished / train.RESULTS
    half = content(finished)[:-300]  # a power cut, in the line of Start_1+Comma_1
    path.write_bytes(half)
    assert train.read_results(path) == rows[:-1]
    printed = capsys.readouterr()
    assert "skipped 1 incomplete lines" in printed.err and not printed.out
    assert methods(run(finished, "Start_1+Comma_1")) == methods(rows)
    assert content(finished).startswith(half + b'\n{"') and content(finished).endswith(b"}\n")


@pytest.mark.parametrize("number", [b"NaN", b"1e999", b'"1"', b"null"])
def test_a_row_without_a_number_is_done_again(number, finished, capsys):
    *_, last = train.read_results(finished / train.RESULTS)
    spoilt = re.sub(rb'(.*"accuracy": \[)[^,]+', rb"\g<1>" + number, content(finished), flags=re.S)
    (finished / train.RESULTS).write_bytes(spoilt)
    again = run(finished, last["method"])
    assert "skipped 1 incomplete lines" in capsys.readouterr().err
    assert again[-1]["accuracy"] == last["accuracy"] and len(again) == 6
    assert content(finished).startswith(spoilt)


@pytest.mark.parametrize("foreign", [b"{", b"\xff\xfe \x00", b"[1]", b'"a"', b"17", b"null",
                                     json.dumps(dict.fromkeys(train.KEY)).encode()])
def test_foreign_lines_are_skipped_and_kept(foreign, finished):
    rows = train.read_results(finished / train.RESULTS)
    (finished / train.RESULTS).write_bytes(foreign + b"\n" + content(finished))
    assert run(finished) == rows
    assert content(finished).startswith(foreign)


def test_lengths_of_numpy_lose_no_row(tmp_path, monkeypatch):
    expected = run(tmp_path)
    for name in ("id_lengths", "ood_lengths", "far_lengths", "test_lengths"):
        lengths = tuple(numpy.array(getattr(GENERATION, name)))
        monkeypatch.setattr(type(GENERATION), name, lengths)
    assert run(tmp_path) == expected


@contextmanager
def full_disk(size: int):
    """One that takes so many bytes of a file, and no more."""
    resource = pytest.importorskip("resource")  # Windows has none
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_costs_one_line_and_no_other(finished):
    path, rows = finished / train.RESULTS, train.read_results(finished / train.RESULTS)
    with full_disk(path.stat().st_size + 100):
        for seed in (7, 8):
            with pytest.raises(OSError):
                train.append_result(path, rows[0] | {"seed": seed})
    train.append_result(path, rows[0] | {"seed": 9})
    assert [row["seed"] for row in train.read_results(path)] == [*[0] * 6, 9]


def test_latents_that_a_full_disk_does_not_take_leave_the_old_ones_whole(finished, capsys):
    rows = content(finished).splitlines(keepends=True)
    (finished / train.RESULTS).write_bytes(b"".join(rows[:3]))
    before = {path: path.is_file() and path.read_bytes() for path in finished.rglob("*")}
    with full_disk(500):
        assert "File too large" in refused(capsys, train, *arguments(finished))
    assert before == {path: path.is_file() and path.read_bytes() for path in finished.rglob("*")}


def test_lines_of_commands_at_once_do_not_mix(tmp_path):
    row = dict.fromkeys(train.KEY, "x" * 9000) | {
        "splits": {"ID": [1, 1]}, "lengths": [1], "accuracy": [1], "exact": [1]}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: train.append_result(tmp_path / "rows", row | {"seed": n}),
                      range(200)))
    rows = train.read_results(tmp_path / "rows")
    assert sorted(row["seed"] for row in rows) == list(range(200))


def test_a_base_that_another_command_made_meanwhile_is_taken(tmp_path, monkeypatch):
    """Else the other's rows stay without their base, and one seed counts as two bases."""
    pretrain, models = train.pretrain, []

    def slow(task, config, seed, device):
        if seed == 60:
            patch.setattr(train, "pretrain", lambda *_: pretrain(task, config, 1, device))
            run(tmp_path)  # another command, which begins later and is faster
        models.append(pretrain(task, config, seed, device))
        return models[-1]

    with monkeypatch.context() as patch:
        patch.setattr(train, "pretrain", slow)
        checksums = {row["base_checksum"] for row in run(tmp_path, "End_2")}
    (mine, _), = models
    assert checksums == {weights_checksum(GPT.load(tmp_path / "generation-base60.pt"))}
    assert weights_checksum(mine) not in checksums and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("steps, bases, kept", [(0, 0, 0), (2, 1, 3), (7, 1, 4)])
def test_ctrl_c_costs_what_is_in_work_and_no_other_line(steps, bases, kept, tmp_path, monkeypatch,
                                                        capsys):
    """Two steps of pre-training, then of three starts, then of two: two calls and five."""
    calls, descend = count(), train.descend

    def interrupted(*given):
        if next(calls) == steps:
            raise KeyboardInterrupt
        return descend(*given)

    monkeypatch.setattr(train, "descend", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "End_2")
    assert stop.value.code == 130 and "finished is kept" in capsys.readouterr().err
    before = content(tmp_path)
    assert before.count(b"\n") == kept and len(list(tmp_path.glob("generation*"))) == bases
    assert methods(run(tmp_path, "End_2")) == [*train.REFERENCES, "Start_2", "End_2"]
    assert content(tmp_path).startswith(before)


def test_a_reader_that_has_gone_is_no_traceback(finished, monkeypatch):  # | head
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, "stdout", output)
        run(finished)
    assert stop.value.code == 1


def test_a_placement_with_a_long_name(tmp_path):
    """Its file has a shorter one."""
    row = run(tmp_path, "+".join(f"{k}_1" for k in range(1, 70)))[-1]
    latents = LatentTokens.load(tmp_path / row["latents"], 16)
    assert len(row["method"]) > 255
    assert (str(latents.placement), weights_checksum(latents)) == (
        row["method"], row["vectors_checksum"])


def test_a_tuning_that_diverges_is_named_and_has_no_line(tmp_path, monkeypatch, capsys):
    loss = train.response_loss
    monkeypatch.setattr(train, "response_loss", lambda *given: loss(*given) * float("nan"))
    assert "Start_2: the latents hold numbers that are not finite" in refused(
        capsys, train, *arguments(tmp_path))
    assert methods(train.read_results(tmp_path / train.RESULTS)) == [*train.REFERENCES]


@pytest.mark.parametrize("mistake, message", [
    (["--methods", "Start_2", "Middle_2"], "unknown placement 'Middle_2'"),
    (["--task", "division"], "choose from"),
    (["--device", "abacus"], "--device: invalid choice: 'abacus' (choose from "),
    (["--bases", "0", "first"], "argument --bases: invalid int value: 'first'"),
    (["--seed", "3"], "unrecognized arguments: --seed 3"),  # no short form of --seeds
])
def test_mistakes_get_one_line_and_write_nothing(mistake, message, tmp_path, capsys):
    assert message in refused(capsys, train, "--out", tmp_path / "run", *mistake)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value, message", [
    ("score", lambda self, example, text: ALL_ONES, "score() must give"),
    ("score", lambda self, example, text: {1: Score(1.0, text != "")}, "score() must give"),
    ("score", lambda self, example, text: {1: Score(0.9, False)}, "score() must give"),
    ("score", lambda self, example, text: {}, "score() must give"),
    ("letter", "W", "'W' is not in the alphabet"), ("letter", "@", "cannot stand in"),
    ("letter", ";", "cannot stand in"), ("reminder", "again!", "is not in the alphabet"),
    ("claim", Claim(("Comma_1+End_1",), ()), "write Comma_1+End_1 in its claim as End_1+Comma_1"),
    ("example", lambda self, rng, length: Example("44@47=83", ",47@83=34"),
     "generation has no validation query of length 1: allow more queries"),
    ("instruction", "Add, 9!", "is not in the alphabet"),  # written once a base is trained
    ("reminder", "R+,9:", "its reminder, R+,9:, cannot have a comma")])  # decoding reminds for ever
def test_a_task_that_contradicts_itself_is_refused_before_the_work(name, value, message, tmp_path,
                                                                   monkeypatch, capsys):
    monkeypatch.setattr(type(GENERATION), name, value)
    monkeypatch.delattr(train, "pretrain")
    assert message in refused(capsys, train, *arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("not a folder")
    for folder in (file, file / "run"):
        assert str(folder) in refused(capsys, train, *arguments(folder))
    assert file.read_text() == "not a folder"


def test_a_base_of_other_settings_or_text_or_a_damaged_one_is_refused(finished, monkeypatch,
                                                                      capsys):
    for name, value in {"steps": 3, "adam_lr": 1e-4, "short": (2, 60)}.items():
        with monkeypatch.context() as patch:
            patch.setitem(train.FAST_PRETRAIN, name, value)
            line = refused(capsys, train, *arguments(finished))
        assert f"was made with other {name}: choose a new --out" in line
    document = GENERATION.document  # an edit that shows only every now and then
    monkeypatch.setattr(GENERATION, "document", lambda rng, progress: (
        document(rng, progress) if progress != 0.08 else "44@47=83,;"))
    assert "was made with other text: " in refused(capsys, train, *arguments(finished))
    base = finished / "generation-base60.pt"
    base.write_bytes(b"\xff\xfe damaged")
    assert "is not a readable base: delete it" in refused(capsys, train, *arguments(finished))
    assert base.read_bytes() == b"\xff\xfe damaged"
