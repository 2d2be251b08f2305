"""Latent thoughts: the bound, the fast loop, what the decoder may see, the text, the tables."""

from dataclasses import asdict, replace
from itertools import cycle
import json
from math import log
from pathlib import Path
import re

import pytest
import torch

from extras.latent_thoughts import __main__ as command, measure, report, text
from extras.latent_thoughts.learning import Posterior, bound, infer, infer_thoughts, train
from extras.latent_thoughts.model import Config, Decoder
from extras.latent_thoughts.text import (RULES, chain, consistent_rules, draw_documents, follows,
                                         ideal_figures, share_following, share_of_best_rule, to_ids)
from tasks import decode
from tests.conftest import refused
from train import make_optimizers

DOCS = Path(__file__).parent.parent / "docs"
TINY = Config(n_layer=2, n_head=2, n_embd=16, thoughts=3, thought_size=2, fast_steps=3, steps=3,
              batch_size=3, equations=6, results=1, warmup=1, checks=2, held_out=3, probed=20,
              samples=4)
TOKEN_IDS = to_ids(draw_documents("tests", 0, 5, TINY.equations)[1])  # (B, 1 + N) = (5, 55)


def random_decoder(config: Config) -> Decoder:
    """With random weights everywhere (a fresh one starts with zeroed outputs, blind to z)."""
    torch.manual_seed(0)
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder


def test_kl_or_log_ratio_with_a_wrong_sign_or_factor():
    torch.manual_seed(1)
    mean, log_variance, noise = torch.randn(3, 5, 2, 3, 4)
    q, sd = Posterior(mean, log_variance), log_variance.exp().sqrt()
    z = q.sample(noise)
    torch.testing.assert_close(z, mean + sd * noise)
    kl = (sd ** 2 + mean ** 2 - 1) / 2 - sd.log()
    torch.testing.assert_close(q.kl(), kl.sum(dim=(1, 2, 3)))
    log_p, log_q = -z ** 2 / 2, -((z - mean) / sd) ** 2 / 2 - sd.log()
    torch.testing.assert_close(q.log_ratio(noise), (log_p - log_q).sum(dim=(1, 2, 3)))


def test_the_fast_loop_misses_the_posterior_of_a_linear_gaussian_toy():
    """x = W z + N(0, 0.5^2), with orthogonal columns, so that the posterior is diagonal. The noise
    is +1 and -1 by turns, with mean 0 and variance 1: all that a quadratic NLL depends on."""
    W = torch.tensor([[1.0, 0.2], [0.5, -0.4], [0.0, 0.0]])  # (3, 2)
    x = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.7, 0.0]])  # (B, 3)
    precision = 1 + (W ** 2).sum(dim=0) / 0.25
    signs = cycle(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
    q = infer(lambda z: ((x - z @ W.T) ** 2).sum(dim=1) / (2 * 0.25),
              Posterior(torch.zeros(2, 2), torch.zeros(2, 2)), lambda: next(signs), 130, 0.2)
    torch.testing.assert_close(q.mean, x @ W / 0.25 / precision, atol=0.02, rtol=0)
    torch.testing.assert_close(q.log_variance, (-precision.log()).expand(2, 2), atol=0.05, rtol=0)


def test_a_bound_without_kl_or_at_noise_that_the_fast_loop_has_seen():
    config = replace(TINY, samples=5)
    decoder, same = random_decoder(config), torch.Generator().manual_seed(7)
    figures = bound(decoder, TOKEN_IDS, config, 3, seed=7)
    q, z = infer_thoughts(decoder, TOKEN_IDS, config, 3, same)
    new_noise = [torch.randn(z.shape, generator=same) for _ in range(5)]
    nll = torch.stack([decoder.nll(TOKEN_IDS, q.sample(each)) for each in new_noise])  # (5, B)
    weights = (torch.stack([q.log_ratio(each) for each in new_noise]) - nll).double().exp()
    nats = {"nll": nll, "kl": q.kl(), "bound": nll + q.kl(), "weighted": -weights.mean(dim=0).log()}
    assert figures == pytest.approx({name: values.mean().item() / (6 * len("44@47=83,"))
                                     for name, values in nats.items()}, rel=1e-4)


@pytest.mark.parametrize("window, reached", [(0, range(10, 55)), (3, range(10, 17))])
@pytest.mark.parametrize("reads", [True, False])
def test_a_leak_from_later_characters_or_from_beyond_the_window(reads, window, reached):
    """Two layers of a window of 3 reach 4 back, and the input embedding 2 more."""
    decoder = random_decoder(replace(TINY, reads=reads, window=window))
    z = torch.randn(5, *decoder.z_shape)
    changed = TOKEN_IDS.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 20
    moved = (decoder.logits(TOKEN_IDS, z) - decoder.logits(changed, z)).abs().amax(dim=(0, 2))
    assert moved.nonzero().flatten().tolist() == list(reached)


def test_a_character_or_a_layer_that_does_not_read_its_own_z():
    decoder = random_decoder(replace(TINY, window=3))
    z = torch.randn(5, *decoder.z_shape, requires_grad=True)
    other = decoder.logits(TOKEN_IDS, z + 1) - decoder.logits(TOKEN_IDS, z)
    assert (other.abs().amax(dim=2) > 0).all()
    decoder.nll(TOKEN_IDS, z).sum().backward()
    assert (z.grad.abs() > 0).all()
    swapped = decoder.nll(TOKEN_IDS, z.flip(1)) - decoder.nll(TOKEN_IDS, z)
    assert (swapped.abs() > 1e-3).all()


def test_slow_steps_other_than_two_written_out():
    """Gradients of the fast loop or of the step before added in, a loss at another z than a sample
    of the posterior, a constant rate or weight of KL."""
    config, seed = replace(TINY, steps=2, decay=1.0), 5
    trained, checks = train(config, seed)
    torch.manual_seed(seed)
    decoder, same = Decoder(config), torch.Generator().manual_seed(seed)
    optimizers = make_optimizers(decoder, config)
    for step, (share, kl_weight) in enumerate([(1.0, 0.0), (0.5, 1.0)]):  # kl_rise = 0.5
        token_ids = to_ids(draw_documents(f"train/{step}", seed, 3, 6)[1])
        _, z = infer_thoughts(decoder, token_ids, config, 3, same, kl_weight)
        logits = decoder.logits(token_ids[:, :-1], z)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        parameters = list(decoder.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        for optimizer, rate in zip(optimizers, (config.muon_lr, config.adam_lr)):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
    for name, weights in decoder.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weights, atol=1e-4, rtol=1e-3)
    held_out = to_ids(draw_documents("check", seed, 3, 6)[1])
    assert checks[-1] == {"sequences": 6} | bound(trained, held_out, config, 3, seed)


def test_documents_under_another_rule_than_they_say():
    assert chain("+-9", "44", "47") == "44@47=83,"
    assert chain("+-9", "44", "47", results=3) == "44@47=83=34=21,"
    example = re.search(r"(?:\d\d@\d\d(?:=\d\d)+,){2}", text.__doc__)[0]
    assert "+-9" in consistent_rules(example)
    rules, texts = draw_documents("tests", 0, 200, 5, results=2)
    assert len(set(RULES)) == 54 and set(rules) <= set(RULES) and len(set(rules)) > 40
    for rule, document in zip(rules, texts):
        assert re.fullmatch(r"(\d\d@\d\d(=\d\d){2},){5}", document)
        assert rule in consistent_rules(document)
    assert draw_documents("other", 0, 200, 5, results=2)[1] != texts
    assert decode(to_ids(texts)[1]) == ";" + texts[1]


def test_text_that_is_no_equation_counts_as_right():
    assert follows("+-9", "44@47=83,") and follows("+-9", "44@47=83=34,")
    for wrong in ("44@47=84,", "44@47=83", "4@47=83,", "44@47,", "44@47=,", "44=47@83,", "12,"):
        assert not follows("+-9", wrong)
    assert share_following("+-9", "44@47=83,44@47=84,x,44@4") == pytest.approx(1 / 3)
    assert share_following("+-9", "44@47=83") == 0
    assert share_of_best_rule("44@47=83,44@47=81,44@47=84,44@47=81,") == pytest.approx(0.5)


def test_ideal_figures_that_forget_rules_which_cannot_be_told_apart():
    """00@00=00 fits all 54 rules. 10@00=10 fits + or - for the first digit, whatever else: 36."""
    operands, cost = 8 * log(10), log(54 / 36)
    for document, all_costs in (("00@00=00,10@00=10,", cost), ("10@00=10,10@00=10,", 2 * cost)):
        assert ideal_figures([document]) == pytest.approx({
            "rule known": operands, "ideal": operands + cost, "no memory": operands + all_costs})


def test_lines_of_another_experiment_or_half_lines_in_the_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "INFERENCE_STEPS", (0, 2))
    path = tmp_path / "new" / "thoughts.jsonl"
    settings = [f"--{name.replace('_', '-')}={value}"
                for name, value in list(asdict(TINY).items())[1:]]
    arguments = ["--out", str(path), "--models", "thoughts", "plain", *settings]
    command.main(arguments)
    printed = capsys.readouterr().out
    mine, plain = map(json.loads, filter(None, path.read_text().split("\n")))
    assert mine["config"] == plain["config"] == asdict(TINY)
    foreign = mine | {"checks": [{"sequences": 1, "bound": 9.0, "nll": 9.0, "kl": 0.0}] * 2}
    others = [foreign | {"config": mine["config"] | {"steps": 4}}, foreign | {"text_checksum": 1},
              mine | {"minutes": 99.0}, {}, [], "README"]
    with path.open("a") as file:  # the last one was cut short
        file.write("\n".join(map(json.dumps, [*others, foreign]))[:-9])
    command.main(arguments)  # all is finished
    same = capsys.readouterr()
    assert same.out == printed[printed.index("| reader"):] and "skipped 4 lines" in same.err


@pytest.mark.parametrize("wrong", ["--seeds=0", "--n-embd=9", "--muon-lr=nan", "--report={}/none"])
def test_a_traceback_after_a_mistake(wrong, tmp_path, capsys):
    refused(capsys, command, f"--out={tmp_path}/new", wrong.format(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("differences, verdict", [
    ([0.5, 0.5, 0.6], "reproduced"), ([0.5] * 17 + [-0.01] * 3, "ordering only"),
    ([-0.1, -0.2, 0.1], "not reproduced"), ([0.5, 0.5], "too few seeds"), ([], "out of reach here"),
    ([1.0, 2.0, 3.0], "ordering only")])  # sd 1, t of two degrees of freedom: 2 -+ 4.303 / sqrt(3)
def test_a_verdict_that_the_seeds_do_not_carry(differences, verdict):
    *figures, found = report.judge(differences)
    assert found == verdict
    assert sum(differences) != 6 or figures == ["+2.000", "-0.484 to +4.484", "3 of 3"]


def test_a_table_of_the_page_that_its_figures_do_not_give():
    page = (Path(command.__file__).parent / "README.md").read_text(encoding="utf-8")
    results = page[page.index("## Results"):]
    runs = report.read(DOCS / "thoughts.jsonl", Config())
    assert report.training_table(runs) in results and report.claim_table(runs) in results
    longer = report.training_table(report.read(DOCS / "thoughts.jsonl", Config(steps=6400)))
    assert "1.080 ± 0.051" in longer and "1.014 ± 0.015" in longer  # told in words
    printed = report.report(DOCS / "thoughts.jsonl", Config()) + "\n" + longer
    assert {line for line in results.splitlines() if line[:1] == "|"} <= set(printed.splitlines())
