"""What goes wrong around a run: no finished line is lost, and every fault is one clear line."""

from concurrent.futures import ThreadPoolExecutor
import json

import pytest

from latent_tokens import LatentTokens, generate
from model import GPT
from tasks import TASKS, Score, encode
import train

pytestmark = pytest.mark.usefixtures("tiny")


def run(out, *arguments: str) -> list[dict]:
    train.main(["--fast", "--device", "cpu", "--out", str(out), "--methods", "Start_2", *arguments])
    return train.read_results(out / train.RESULTS)


def refusal(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    line, = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    return line


def content(out) -> bytes:
    return (out / train.RESULTS).read_bytes()


def methods(rows: list[dict]) -> list[str]:
    return [row["method"] for row in rows]


# ------------------------------------------------------------------ results are only appended to

def test_a_second_command_repeats_nothing_and_only_appends(finished):
    before = content(finished)
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")}
    rows = run(finished, "8_2-own")
    assert content(finished).startswith(before)
    assert methods(rows)[-1] == "8_2-own" and len(rows) == before.count(b"task_checksum") + 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_names_of_one_placement_are_one_result(finished):
    before = content(finished)
    run(finished, "Comma_1+Start_1", "Start_1+Comma_1", "Start_2")
    assert content(finished) == before


def edit_lengths(patch):
    patch.setattr(type(TASKS["generation"]), "test_lengths", (4,))


def edit_rule(patch):
    patch.setattr(type(TASKS["generation"]), "target_rule", "++5")


def edit_id_lengths(patch):
    patch.setattr(type(TASKS["generation"]), "id_lengths", range(1, 3 + 1))


def edit_far_lengths(patch):
    patch.setattr(type(TASKS["generation"]), "far_lengths", range(5, 6))


def edit_score(patch):
    patch.setattr(type(TASKS["generation"]), "score", lambda self, example, text: {
        length: Score(1.0, True) for length in range(1, 6)})


def edit_tuning(patch):
    patch.setitem(train.FAST_TUNE, "batch_size", 5)


@pytest.mark.parametrize("edit", [edit_lengths, edit_rule, edit_id_lengths, edit_far_lengths,
                                  edit_score, edit_tuning])
def test_a_line_of_another_experiment_is_neither_lost_nor_mixed_in(edit, finished, monkeypatch,
                                                                   capsys):
    before = content(finished)
    with monkeypatch.context() as patch:
        edit(patch)
        run(finished)
        table = capsys.readouterr().out.split("OOD\n")[1]
        assert content(finished).startswith(before)
        new = train.read_results(finished / train.RESULTS)[6:]
        assert methods(new) == ["base", "instruction", "reminders", "Start_2"]
        for row in new:
            mean = train.split_means(row, "accuracy")["ID"]
            assert f"{row['method']:38} {mean:8.2f}" in table
        after = content(finished)
        run(finished)
        assert content(finished) == after
    run(finished)
    assert content(finished) == after


def test_another_base_has_lines_of_its_own(finished):
    base = GPT.load(finished / "generation-base0.pt")
    base.blocks[0].qkv.weight.data.add_(1e-3)
    base.save(finished / "generation-base0.pt", base.notes)
    rows = run(finished)
    assert methods(rows[6:]) == ["base", "instruction", "reminders", "Start_2"]
    assert rows[0]["base_checksum"] != rows[6]["base_checksum"]


def test_half_a_line_is_skipped_with_a_word_and_ends_no_other(finished, capsys):
    rows, path = train.read_results(finished / train.RESULTS), finished / train.RESULTS
    path.write_bytes(content(finished)[:-300])  # a power cut, in the line of Start_1+Comma_1
    assert train.read_results(path) == rows[:-1]
    assert "skipped 1 incomplete lines" in capsys.readouterr().out
    assert methods(run(finished, "Start_1+Comma_1")) == methods(rows)


@pytest.mark.parametrize("foreign", [b"{", b"\xff\xfe \x00", b"[1]", b'"a"', b"17", b"null",
                                     json.dumps(dict.fromkeys(train.KEY)).encode()])
def test_foreign_lines_are_skipped_and_kept(foreign, finished):
    rows = train.read_results(finished / train.RESULTS)
    (finished / train.RESULTS).write_bytes(foreign + b"\n" + content(finished))
    assert run(finished) == rows
    assert content(finished).startswith(foreign)


def test_a_full_disk_costs_one_line_and_no_other(finished, monkeypatch):
    """A disk that takes the first half of a line."""
    import resource
    path, rows = finished / train.RESULTS, train.read_results(finished / train.RESULTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        for seed in (7, 8):
            with pytest.raises(OSError):
                train.append_result(path, rows[0] | {"seed": seed})
        with pytest.raises(OSError):
            GPT.load(finished / "generation-base0.pt").save(finished / "other.pt", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    train.append_result(path, rows[0] | {"seed": 9})
    assert [row["seed"] for row in train.read_results(path)] == [*[0] * 6, 9]
    assert not list(finished.glob("*other*"))


def test_lines_of_commands_at_once_do_not_mix(tmp_path):
    row = dict.fromkeys(train.KEY, "x" * 9000) | {
        "splits": {"ID": [1, 1]}, "lengths": [1], "accuracy": [1], "exact": [1]}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: train.append_result(tmp_path / "rows", row | {"seed": n}),
                      range(200)))
    rows = train.read_results(tmp_path / "rows")
    assert sorted(row["seed"] for row in rows) == list(range(200))


def test_ctrl_c_costs_the_base_in_work_and_no_other_file(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "set_learning_rate", interrupted)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path)
    assert stop.value.code == 130 and "finished is kept" in capsys.readouterr().err
    assert not list(tmp_path.glob("generation*")) and methods(run(tmp_path))[-1] == "Start_2"


def test_ctrl_c_in_a_tuning_keeps_what_is_finished(tmp_path, monkeypatch):
    tune = train.tune

    def interrupted(base, task, placement, *rest):
        if str(placement) == "End_2":
            raise KeyboardInterrupt
        return tune(base, task, placement, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "tune", interrupted)
        with pytest.raises(SystemExit):
            run(tmp_path, "End_2")
    kept = content(tmp_path)
    assert methods(train.read_results(tmp_path / train.RESULTS)) == [*train.REFERENCES, "Start_2"]
    run(tmp_path, "End_2")
    assert content(tmp_path).startswith(kept)


def test_a_tuning_that_diverges_is_named_and_has_no_line(tmp_path, monkeypatch, capsys):
    loss = train.response_loss
    monkeypatch.setattr(train, "response_loss", lambda *arguments: loss(*arguments) * float("nan"))
    line = refusal(capsys, "--fast", "--device", "cpu", "--out", str(tmp_path), "--methods",
                   "Start_2")
    assert "generation, Start_2, seed 0: no trial has a finite loss" in line
    assert methods(train.read_results(tmp_path / train.RESULTS)) == [*train.REFERENCES]
    assert not list((tmp_path / "latents").iterdir())


# ----------------------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize("arguments, message", [
    (["--methods", "Comma_0"], "unknown placement 'Comma_0': expected Start_m, End_m, Comma_m"),
    (["--methods", "Start_2", "Middle_2"], "unknown placement 'Middle_2'"),
    (["--methods", "Comma_4:random"], "unknown placement 'Comma_4:random'"),
    (["--task", "division"], "choose from"),
    (["--device", "abacus"], "--device: invalid choice: 'abacus' (choose from "),
    (["--steps", "0"], "argument --steps: '0' is no number from 1 to 1000000000"),
    (["--bases", "0", "-1"], "argument --bases: '-1' is no number from 0 to"),
    (["--bases", "9" * 30], "is no number from 0 to"),
    (["--steps", "many"], "argument --steps: 'many' is no number"),
    (["--out", ""], "--out: a run needs a folder of its own"),
    (["--unknown"], "unrecognized arguments"),
])
def test_mistakes_get_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    assert message in refusal(capsys, "--out", str(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / folder) in refusal(capsys, "--fast", "--out", str(tmp_path / folder))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("change", [{"steps": 3}, {"adam_lr": 1e-4}, {"short": (2, 60)}])
def test_a_base_of_other_settings_is_refused(change, finished, monkeypatch, capsys):
    monkeypatch.setattr(train, "FAST_PRETRAIN", train.FAST_PRETRAIN | change)
    line = refusal(capsys, "--fast", "--out", str(finished))
    assert f"was made with {next(iter(change))} = " in line and "choose a new --out" in line


def test_a_base_is_not_taken_for_another_text(finished, monkeypatch, capsys):
    """Even where an edit of ``document`` shows only every now and then."""
    document, count = TASKS["generation"].document, iter(range(10_000))
    monkeypatch.setattr(TASKS["generation"], "document", lambda rng, progress: (
        document(rng, progress) if next(count) != 80 else "44@47=83,;"))
    assert "was made with text = " in refusal(capsys, "--fast", "--out", str(finished))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe nonsense"])
def test_a_damaged_base_is_refused_and_kept(damage, finished, capsys):
    path = finished / "generation-base0.pt"
    path.write_bytes(damage)
    assert "is not a readable base: delete it" in refusal(capsys, "--fast", "--out", str(finished))
    assert path.read_bytes() == damage


def test_a_base_and_latents_load_in_a_users_script(finished):
    base = GPT.load(finished / "generation-base0.pt")
    latents = LatentTokens.load(finished / "latents" / "generation-base0-Start_2-seed0.pt",
                                base.config.n_embd)
    assert len(generate(base, latents, [encode("44@47=83,")], 5)[0]) == 5
    with pytest.raises(ValueError, match="is not a readable base"):
        GPT.load(finished / "results.jsonl")
