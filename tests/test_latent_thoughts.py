"""Latent thoughts: the bound, the fast loop, what the decoder may see, the text, the tables."""

from dataclasses import asdict, replace
from itertools import cycle
import json
from math import log
from pathlib import Path
import re

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from extras import hidden_rules, latent_thoughts, thought_figures
from extras.hidden_rules import (RULES, consistent_rules, draw_documents, equation, follows,
                                 ideal_figures, share_following, share_of_best_rule)
from extras.latent_thoughts import (Config, Decoder, Posterior, bound, infer, infer_thoughts, main,
                                    to_ids, train)
from latent_tokens import UserError
from tasks import TASKS, decode
from train import make_optimizers

TINY = Config(n_layer=2, n_head=2, n_embd=16, thoughts=3, thought_size=2, fast_steps=3, steps=3,
              batch_size=3, equations=6, results=1, warmup=1, checks=2, held_out=3, probed=20,
              samples=4)


def random_decoder(config: Config) -> Decoder:
    """With random weights everywhere (a fresh one starts with zeroed outputs, blind to z)."""
    torch.manual_seed(0)
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder


def random_posterior(*shape: int) -> Posterior:
    torch.manual_seed(1)
    return Posterior(torch.randn(shape), torch.randn(shape))


@pytest.fixture
def token_ids() -> torch.Tensor:
    return to_ids(draw_documents("tests", 0, 5, TINY.equations)[1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------- the posterior

def test_kl_and_log_ratio_against_torch_distributions():
    """Bug caught: a wrong sign or factor, sd in place of variance, a mean in place of a sum."""
    q, noise = random_posterior(5, 2, 3, 4), torch.randn(5, 2, 3, 4)
    theirs = Normal(q.mean, (0.5 * q.log_variance).exp())
    prior = Normal(torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(q.kl(), kl_divergence(theirs, prior).sum(dim=(1, 2, 3)))
    z = q.sample(noise)
    ratio = (prior.log_prob(z) - theirs.log_prob(z)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(q.log_ratio(noise), ratio)


def test_the_fast_loop_finds_the_posterior_of_a_linear_gaussian_toy():
    """Bug caught: KL weighted wrongly, a gradient that misses mean or variance, no convergence.

    x = W z + N(0, 0.5^2) with orthogonal columns, so that the posterior is diagonal: precision
    1 + |w|^2 / 0.25, mean w.x / 0.25 / precision. The noise alternates between +1 and -1, which
    has the mean and the variance of standard normal noise: all that a quadratic NLL depends on.
    """
    W = torch.tensor([[1.0, 0.2], [0.5, -0.4], [0.0, 0.0]])  # (3, 2)
    x = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.7, 0.0]])  # (B, 3)
    precision = 1 + (W ** 2).sum(dim=0) / 0.25
    signs = cycle(torch.tensor(pair) for pair in ((1.0, 1.0), (-1.0, -1.0), (1.0, -1.0),
                                                  (-1.0, 1.0)))
    q = infer(lambda z: ((x - z @ W.T) ** 2).sum(dim=1) / (2 * 0.25),
              Posterior(torch.zeros(2, 2), torch.zeros(2, 2)), lambda: next(signs), 400, 0.1)
    torch.testing.assert_close(q.mean, x @ W / 0.25 / precision, atol=0.02, rtol=0)
    torch.testing.assert_close(q.log_variance, (-precision.log()).expand(2, 2), atol=0.05, rtol=0)


def test_without_fast_steps_q_is_the_prior(token_ids):
    """Bug caught: a loop that runs once too often, or a start beside the prior."""
    q, _ = infer_thoughts(random_decoder(TINY), token_ids, TINY, 0, generator())
    assert q.mean.shape == (5, 2, 3, 2)
    assert (q.mean == 0).all() and (q.log_variance == 0).all() and (q.kl() == 0).all()


def test_the_fast_loop_leaves_the_decoder_alone(token_ids):
    """Bug caught: backward() in the fast loop, whose gradients the slow step would then add in."""
    decoder = random_decoder(TINY)
    before = [parameter.detach().clone() for parameter in decoder.parameters()]
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    infer_thoughts(decoder, token_ids, TINY, 3, generator())
    for parameter, old in zip(decoder.parameters(), before):
        assert torch.equal(parameter, old) and (parameter.grad == 1).all()


def test_fast_steps_lower_the_bound(token_ids):
    """Bug caught: steps up the bound, or an optimizer that is not handed the gradients."""
    config = replace(TINY, samples=16)
    decoder = random_decoder(config)
    figures = [bound(decoder, token_ids, config, steps, 0) for steps in (0, 4, 32)]
    assert figures[0]["bound"] > figures[1]["bound"] > figures[2]["bound"]
    assert figures[0]["kl"] == 0 < figures[2]["kl"]


def test_sequences_do_not_disturb_one_another(token_ids):
    """Bug caught: a mean over the batch in the loss, which makes q depend on the batch size."""
    decoder, noise = random_decoder(TINY), torch.randn(5, 2, 3, 2)
    start = Posterior(torch.zeros_like(noise), torch.zeros_like(noise))
    together = infer(lambda z: decoder.nll(token_ids, z), start, lambda: noise, 4, 0.3)
    alone = infer(lambda z: decoder.nll(token_ids[2:3], z), Posterior(*(q[2:3] for q in start)),
                  lambda: noise[2:3], 4, 0.3)
    for batch, single in zip(together, alone):
        torch.testing.assert_close(batch[2:3], single, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------- the bound

def test_the_bound_is_looser_than_the_importance_weighted_one(token_ids):
    """Bug caught: a log ratio upside down, or an NLL that is not that of the sampled z.

    Of the same samples the mean of log weights is never more than the log of their mean.
    """
    decoder, q = random_decoder(TINY), random_posterior(5, 2, 3, 2)
    log_weights = []
    for _ in range(8):
        noise = torch.randn(5, 2, 3, 2)
        log_weights.append(q.log_ratio(noise) - decoder.nll(token_ids, q.sample(noise)))
    log_weights = torch.stack(log_weights)  # (8, B)
    weighted = log_weights.logsumexp(dim=0) - log(8)
    assert (log_weights.mean(dim=0) < weighted).all()


def test_bound_reports_what_its_names_say(token_ids):
    """Bug caught: a bound without KL, the noise of the fast loop used again, a mean over the wrong
    number of characters or samples, importance weights upside down."""
    config = replace(TINY, samples=5)
    decoder, same = random_decoder(config), generator(7)
    figures = bound(decoder, token_ids, config, 3, seed=7)
    q, z = infer_thoughts(decoder, token_ids, config, 3, same)
    new_noise = [torch.randn(z.shape, generator=same) for _ in range(5)]
    nll = torch.stack([decoder.nll(token_ids, q.sample(each)) for each in new_noise])  # (5, B)
    weights = (torch.stack([q.log_ratio(each) for each in new_noise]) - nll).double().exp()
    nats = {"nll": nll, "kl": q.kl(), "bound": nll + q.kl(), "weighted": -weights.mean(dim=0).log()}
    characters = 6 * len("44@47=83,")
    for name, values in nats.items():
        assert figures[name] == pytest.approx(values.mean().item() / characters, rel=1e-4), name


def test_a_plain_gpt_has_no_kl_and_an_exact_nll(token_ids):
    """Bug caught: an empty z that costs something; a loss beside that of the GPT in model.py."""
    plain = replace(TINY, reads=False, window=0)
    decoder = random_decoder(plain)
    figures = bound(decoder, token_ids, plain, 0, 0)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    position_ids = torch.arange(inputs.shape[1]).expand(inputs.shape)
    log_p = decoder(decoder.embed(inputs), position_ids).log_softmax(dim=-1)
    nll = -log_p.gather(2, targets[..., None]).mean().item()
    assert figures["kl"] == 0
    for name in ("nll", "weighted", "bound"):
        assert figures[name] == pytest.approx(nll, rel=1e-5)


# ----------------------------------------------------------------------------------- the decoder

@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("reads", [True, False])
def test_nothing_leaks_from_later_characters_but_through_z(token_ids, reads, window):
    """Bug caught: attention without its causal mask once there is a window, or one off by one."""
    config = replace(TINY, reads=reads, window=window)
    decoder = random_decoder(config)
    z = torch.randn(5, *decoder.z_shape)
    changed = token_ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 20
    moved = (decoder.logits(token_ids, z) - decoder.logits(changed, z)).abs().amax(dim=(0, 2))
    assert (moved[:10] == 0).all() and moved[10] > 0  # (1 + N,)
    if reads:
        other = decoder.logits(token_ids, z + 1) - decoder.logits(token_ids, z)
        assert (other.abs().amax(dim=2) > 0).all()  # every character reads z


def test_the_window(token_ids):
    """Bug caught: a window off by one, or one that hides the slots of z from late characters.

    Two layers of a window of 3 reach 4 back, and the input embedding 2 more.
    """
    config = replace(TINY, window=3)
    decoder = random_decoder(config)
    z = torch.randn(5, *decoder.z_shape)
    changed = token_ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 20
    moved = (decoder.logits(token_ids, z) - decoder.logits(changed, z)).abs().amax(dim=(0, 2))
    assert moved.nonzero().flatten().tolist() == list(range(10, 17))


def test_a_layer_reads_its_own_thoughts(token_ids):
    """Bug caught: all layers reading the first layer's z, or one M for another."""
    decoder = random_decoder(TINY)
    z = torch.randn(5, *decoder.z_shape, requires_grad=True)
    decoder.nll(token_ids, z).sum().backward()
    assert (z.grad.abs() > 0).all()
    swapped = decoder.nll(token_ids, z.flip(1)) - decoder.nll(token_ids, z)
    assert (swapped.abs() > 1e-3).all()


# -------------------------------------------------------------------------------------- training

def test_the_same_seed_gives_the_same_result(capsys):
    """Bug caught: a draw from a generator that nobody seeded."""
    (first, figures), (again, same), (other, _) = (train(TINY, seed) for seed in (3, 3, 4))
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    assert figures == same and [each["sequences"] for each in figures] == [6, 9]
    assert not torch.equal(first.head.weight, other.head.weight)


def test_slow_steps(capsys):
    """Bug caught: gradients of the fast loop or of the last step added in, a step uphill, the
    decoder's loss at another z than a sample of the posterior, a constant rate or weight of KL."""
    config = replace(TINY, steps=2, decay=1.0)
    trained, _ = train(config, 0)
    torch.manual_seed(0)
    decoder, same = Decoder(config), generator(0)
    optimizers = make_optimizers(decoder, config)
    for step, (share, kl_weight) in enumerate([(1.0, 0.0), (0.5, 1.0)]):  # kl_rise = 0.5
        token_ids = to_ids(draw_documents(f"train/{step}", 0, 3, 6)[1])
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


def test_all_models_of_a_seed_read_the_same_text(monkeypatch, capsys):
    """Bug caught: text that depends on how much noise a model has drawn."""
    seen = []
    monkeypatch.setattr("extras.latent_thoughts.to_ids",
                        lambda texts: (seen[-1].append(texts), to_ids(texts))[1])
    for config in (TINY, replace(TINY, reads=False, fast_steps=0), replace(TINY, fast_steps=1)):
        seen.append([])
        train(config, 0)
    assert seen[0] == seen[1] == seen[2]


def test_a_plain_gpt_has_no_fewer_parameters():
    """Bug caught: a comparison in which the plain GPT is the smaller model."""
    for config in (Config(), TINY):
        for n_layer in (config.n_layer, config.n_layer + 1):
            plain = thought_figures.plain_gpt(config, n_layer)
            ours, theirs = (thought_figures.parameters_of(each) for each in (config, plain))
            assert ours <= theirs < 1.6 * ours and plain.window == 0 and not plain.reads
            assert plain.n_layer == n_layer


@pytest.mark.parametrize("change", [
    {"n_embd": 10}, {"steps": 0}, {"fast_lr": -1.0},
    {"equations": 3}, {"muon_lr": float("nan")}])
def test_impossible_settings(change):
    """Bug caught: a traceback from deep inside, after minutes."""
    with pytest.raises(UserError):
        replace(TINY, **change)


# ---------------------------------------------------------------------------------- the documents

def test_documents():
    """Bug caught: a chain that drops its last operand; rules beside Generation's 54."""
    assert equation("+-9", "44", "47") == "44@47=83,"
    assert equation("+-9", "44", "47", results=3) == "44@47=83=34=21,"
    for module in (latent_thoughts, hidden_rules):  # the examples in their documentation
        examples = re.findall(r"(?:\d\d@\d\d(?:=\d\d)+,){2}", module.__doc__)
        assert examples and all("+-9" in consistent_rules(text) for text in examples)
    rules, texts = draw_documents("tests", 0, 200, 5, results=2)
    assert len(set(RULES)) == 54 and set(rules) <= set(RULES) and len(set(rules)) > 40
    assert TASKS["generation"].target_rule in RULES
    for rule, text in zip(rules, texts):
        assert re.fullmatch(r"(\d\d@\d\d(=\d\d){2},){5}", text) and rule in consistent_rules(text)
    assert draw_documents("tests", 0, 200, 5, results=2)[1] == texts
    assert draw_documents("other", 0, 200, 5, results=2)[1] != texts
    assert decode(to_ids(texts[:2])[1]) == ";" + texts[1]


def test_judging():
    """Bug caught: text that is no equation counted as right, or left out of the share."""
    assert follows("+-9", "44@47=83,") and follows("+-9", "44@47=83=34,")
    for wrong in ("44@47=84,", "44@47=83", "4@47=83,", "44@47,", "44@47=,", ",", "44=47@83,"):
        assert not follows("+-9", wrong)
    assert share_following("+-9", "44@47=83,44@47=84,x,44@4") == pytest.approx(1 / 3)
    assert share_following("+-9", "44@47=83") == 0
    assert share_of_best_rule("44@47=83,44@47=81,44@47=84,44@47=81,") == pytest.approx(0.5)


def test_ideal_figures():
    """Bug caught: a cost that forgets the rules that cannot be told apart.

    00@00=00 fits all 54 rules. 10@00=10 fits + or - for the first digit, whatever else: 36.
    """
    operands = 8 * log(10)
    assert ideal_figures(["00@00=00,10@00=10,"]) == pytest.approx({
        "rule known": operands, "ideal": operands + log(54 / 36),
        "no memory": operands + log(54 / 36)})
    twice = ideal_figures(["10@00=10,10@00=10,"])
    assert twice["ideal"] == pytest.approx(operands + log(54 / 36))
    assert twice["no memory"] == pytest.approx(operands + 2 * log(54 / 36))


# ------------------------------------------------------------------------------------- the figures

def test_linear_probe():
    """Bug caught: a probe that is tested on what it was fitted to."""
    torch.manual_seed(0)
    classes = torch.randint(3, (300,))
    labels = ["+-x"[each] for each in classes]
    inputs = torch.randn(3, 20)[classes] + 0.1 * torch.randn(300, 20)
    assert thought_figures.linear_probe(inputs, labels) > 0.97
    assert thought_figures.linear_probe(torch.randn(300, 100), labels) < 0.5


def test_continuations_go_on_from_the_prefix():
    """Bug caught: the last characters of the prefix returned as a continuation."""
    decoder = random_decoder(TINY)
    decoder.head.weight.data *= 100  # as good as greedy
    z = torch.randn(2, *decoder.z_shape)
    whole = thought_figures.continuations(decoder, ["12", "34"], z, 6, generator())
    start = [text + written[:2] for text, written in zip(["12", "34"], whole)]
    rest = thought_figures.continuations(decoder, start, z, 4, generator())
    assert rest == [text[2:] for text in whole] and len(whole[0]) == 6


def test_the_job_its_file_and_its_tables(tmp_path, monkeypatch, capsys):
    """Bug caught: an option that is not passed on, finished runs made again, a broken table."""
    path = tmp_path / "new" / "thoughts.json"
    command = ["--out", str(path), "--models", "thoughts", "plain"]
    for name, value in list(asdict(TINY).items())[1:]:
        command += [f"--{name.replace('_', '-')}", str(value)]
    main(command)
    saved = json.loads(path.read_text())
    assert saved["config"] == asdict(TINY)
    assert [run["model"] for run in saved["runs"]] == ["thoughts", "plain"]
    printed = capsys.readouterr().out
    assert "too few seeds" in printed and "out of reach here" in printed and "| plain |" in printed
    with monkeypatch.context() as patch:
        patch.setattr(thought_figures, "train", None)  # all is finished: nothing to train
        main(command)
        main(["--report", str(path)])
    assert capsys.readouterr().out.count("| thoughts | 16 |") == 2
    for wrong in (["--seeds", "0"], ["--models", "thought"], ["--steps", "4"]):
        with pytest.raises(SystemExit):
            main(command + wrong)
    with pytest.raises(SystemExit):
        main(["--report", str(path), str(path)])


def test_verdicts(tmp_path):
    """Bug caught: a difference the wrong way round, seeds that are not paired, two seeds."""
    def run(model: str, seed: int, last: float) -> dict:
        return {"model": model, "seed": seed, "checks": [{"bound": 9.0}, {"bound": last}],
                "few-shot": {"1": 0.2, "4": 0.2 + last / 10}, "one rule": 0.5}

    def verdicts(seeds: int) -> dict[str, str]:
        runs = [run(*each) for seed in range(seeds) for each in (
            ("thoughts", seed, 1.1 + seed), ("plain", seed, 1.2 + seed + 0.001 * seed),
            ("few-steps", seed, 1.0 + seed), ("half-width", seed, 1.0 + seed - 0.1 * (seed == 1)))]
        path = tmp_path / f"{seeds}.json"
        path.write_text(json.dumps({"runs": runs}))
        lines = thought_figures.claim_table(thought_figures.Results([path])).splitlines()[2:]
        return {line.split("|")[2].strip(): line.split("|")[-2].strip() for line in lines}

    found = verdicts(3)
    assert found["bound: plain - thoughts"] == "reproduced"
    assert found["bound: few-steps - thoughts"] == "not reproduced"
    assert found["bound: few-steps - half-width"] == "ordering only"
    assert found["share after 4: thoughts - half-z"] == "out of reach here"
    assert set(verdicts(2).values()) == {"too few seeds", "out of reach here"}


def test_the_page_shows_what_its_figures_say():
    """Bug caught: tables in docs/ of other runs than those whose figures lie beside them."""
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "latent_thoughts.md").read_text(encoding="utf-8")
    assert page.endswith(thought_figures.report([docs / "thoughts.json"]) + "\n")
    longer = thought_figures.Results([docs / "thoughts_long.json"])
    assert thought_figures.training_table(longer) in page
