"""extras/pretrained.py on tiny random models of many kinds: right, or refused. Skipped without
``transformers``. Oracles: the model's own logits of ids, single rows, masks that are spelled out.
"""

from contextlib import nullcontext

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

import latent_tokens
from extras.pretrained import Pretrained
from latent_tokens import LatentTokens, Placement, generate, make_batch, response_logits
from model import UserError
from tests import reference

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "error::FutureWarning")
V, WINDOW, COMMA = 40, 12, 3
SEPARATORS = {"Comma": (COMMA,)}
BATCH, ROWS, REFUSED = "batch", "rows", None
NEW = transformers.__version__ >= "5.24"
NO_MASK = ["BloomForCausalLM"]  # raises its own error where it is given one of four dimensions
KINDS = {  # every slot sees all, with rotary positions; learned ones; ALiBi
    BATCH: "llama qwen2 qwen3 gemma olmo2 mixtral granite gptj gpt_neox falcon stablelm phi3 "
           "nemotron gpt2 opt xglm ctrl roberta bert bloom",
    # windows and chunks; a state or a convolution; places count padding
    ROWS: "mistral starcoder2 gemma2 gemma3_text gpt_oss gpt_neo exaone4 modernbert-decoder moshi "
          "llama4_text bamba falcon_h1 qwen3_next lfm2 bart mpt " + "mamba2" * NEW,
    # words enter every layer; several slots restart the state; no cache that can be told
    REFUSED: "gemma3n_text gemma4_text jamba mamba recurrent_gemma rwkv openai-gpt"}
FAMILIES = {kind: way for way, kinds in KINDS.items() for kind in kinds.split()}
SMALL = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, ffn_dim=48, dff=48,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=96,
    pad_token_id=1, bos_token_id=0, eos_token_id=2, is_decoder=True, rotary_dim=4,
    word_embed_proj_dim=32, num_experts=4, num_local_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=24, shared_expert_intermediate_size=24, intermediate_size_mlp=48,
    decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, encoder_layers=1,
    sliding_window=WINDOW, window_size=WINDOW, attention_chunk_size=WINDOW,
    attention_window_size=WINDOW, local_attention=2 * WINDOW, embedding_multiplier=3.0,
    attention_types=[[["global", "local"], 1]], attn_layer_period=2, attn_layer_offset=1,
    attn_layer_indices=[1], state_size=8, n_groups=1, chunk_size=4, mamba_chunk_size=4,
    mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_ssm=64,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
    linear_value_head_dim=8, lru_width=32, hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=V, num_kv_shared_layers=0)
SPECIAL = {"mamba2": dict(num_heads=4, head_dim=16, num_key_value_heads=4),
           "lfm2": dict(layer_types=["conv", "full_attention"]),
           "mixtral": dict(sliding_window=None), "phi3": dict(sliding_window=None),
           "falcon": dict(num_kv_heads=2), "mpt": dict(n_heads=4, d_model=32)}


def tiny(kind: str, **more):
    """A model whose logits are far apart."""
    torch.manual_seed(0)
    cls = transformers.CONFIG_MAPPING[kind]
    usual = cls().to_dict()
    settings = {name: SMALL[name] for name in SMALL if name in usual or name in cls.attribute_map}
    if usual.get("layer_types"):  # one layer of each
        settings["layer_types"] = ([*dict.fromkeys(usual["layer_types"])] * 2)[:2]
    model = getattr(transformers, CLASSES[kind])(cls(**settings | SPECIAL.get(kind, {}) | more))
    for name, weights in model.named_parameters():
        if weights.dim() < 2:
            weights.data.add_(0.1 * torch.randn(weights.shape))
        elif "A_log" not in name:
            weights.data.normal_(0, 1 if "emb" in name else weights[0].numel() ** -0.5)
    return model


def rows(long: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Two queries and their responses: at most 12 slots, or well beyond."""
    words = torch.randint(4, V, (2, 40), generator=torch.Generator().manual_seed(4))
    words[:, 1::3] = COMMA
    n, m = (16, 10) if long else (4, 4)
    first, second = words.tolist()
    return [first[:n], second[:n // 2]], [first[20:20 + m], second[21:21 + m]]


def some_latents(base: Pretrained, notation: str) -> LatentTokens:
    table = base.embed(torch.arange(V))
    latents = LatentTokens(Placement.parse(notation, SEPARATORS), table.shape[1])
    latents.initialize(table, torch.Generator().manual_seed(3))
    latents.vectors.data.mul_(10)
    return latents


@torch.no_grad()
def plain_logits(base, latents, notation: str, query, response) -> torch.Tensor:
    """(R, V): one row, no cache, insertion by tests/reference.py, the mask spelled out."""
    slots = reference.row_slots(notation, query, response, SEPARATORS)
    table = torch.cat([latents.vectors, base.embed(torch.tensor([*query, *response]))])
    mask = torch.ones(1, len(slots), dtype=torch.long)  # where layers are to see less than all
    if base.hides and len(slots) <= base.window and base.name not in NO_MASK:
        mask = torch.full((len(slots), len(slots)), torch.finfo().min)
        for i, earlier in enumerate(reference.seen_slots(notation, query, response, SEPARATORS)):
            mask[i, earlier] = 0
        mask = mask[None, None]
    positions = torch.tensor([reference.position_ids(notation, slots)]) + base.offset
    logits = base.model(inputs_embeds=table[reference.sources(notation, slots)][None],
                        position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
    return logits[reference.read_slots(notation, query, response, SEPARATORS)]


def cached_logits(base, latents, queries, responses, monkeypatch) -> torch.Tensor:
    """(B, R, V): what decoding reads, with the responses in the place of its choices."""
    read, seen = latent_tokens.read_logits, []

    def forced(token_ids, choice):
        return next(response[len(token_ids) - len(query)] for query, response
                    in zip(queries, responses) if token_ids[:len(query)] == query)

    with monkeypatch.context() as patch:
        patch.setattr(latent_tokens, "read_logits",
                      lambda *arguments: seen.append(read(*arguments)) or seen[-1])
        generate(base, latents, queries, len(responses[0]), overrule=forced)
    return torch.cat(seen, dim=1)


def same(logits, expected):
    torch.testing.assert_close(logits, expected, atol=3e-3 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_that_is_silently_wrong(kind, monkeypatch):
    model = tiny(kind)
    if FAMILIES[kind] is REFUSED:
        pytest.raises(UserError, Pretrained, model)
        return
    base = Pretrained(model)
    assert base.way.startswith(FAMILIES[kind])
    for notation in "Start_1+Comma_1", "Start_1+Comma_1-latest":
        for long in False, True:
            right_or_refused(base, notation, long, monkeypatch)
    query, nothing = rows(True)[0][0], Placement()
    batch = make_batch(nothing, [query[:-2]], [query[-2:]])
    with torch.no_grad():  # the model itself, beyond its windows, has the same
        latents = LatentTokens(nothing, base.embed(torch.tensor([0])).shape[1])
        same(response_logits(base, latents, batch), model(torch.tensor([query])).logits[:, -3:-1])


@torch.no_grad()
def right_or_refused(base, notation: str, long: bool, monkeypatch):
    latents, (queries, responses) = some_latents(base, notation), rows(long)
    batch = make_batch(latents.placement, queries, responses)
    try:
        together = response_logits(base, latents, batch)
        cached = cached_logits(base, latents, queries, responses, monkeypatch)
    except (UserError, ValueError):
        assert latents.placement.latest_only
        assert not base.hides or long and base.window == WINDOW or base.name in NO_MASK
        return
    expected = torch.stack([plain_logits(base, latents, notation, *row)
                            for row in zip(queries, responses)])
    same(together, expected)
    same(cached, expected)


def test_words_left_unsaid_and_a_mask_in_another_type():
    with pytest.warns(UserWarning, match="ignores position ids"):
        with pytest.warns(UserWarning, match="by rows"):
            Pretrained(tiny("mpt"))
    with pytest.raises(UserError, match="more than embeddings"):
        Pretrained(tiny("gemma3n_text"))
    with pytest.raises(UserError, match="with a cache"):  # sees both ways
        Pretrained(tiny("bert", is_decoder=False))
    base = Pretrained(tiny("llama").to(torch.bfloat16))
    latents = some_latents(base, "Start_1+Comma_1-latest")
    batch = make_batch(latents.placement, *rows(False))
    response_logits(base, latents, batch).sum().backward()
    assert latents.vectors.grad.dtype == torch.float32 and base.way == BATCH


def test_a_head_that_is_applied_to_slots_that_nobody_reads():
    base, shapes = Pretrained(tiny("llama")), []
    base.model.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    latents = some_latents(base, "Comma_2")
    batch = make_batch(latents.placement, *rows(True))
    response_logits(base, latents, batch)
    assert shapes == [(2, len(batch.read_slots.unique()), V)]
    assert shapes[0][1] < batch.sources.shape[1]


def test_positions_that_turn_beyond_the_original_length():
    rope = dict(rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=20,
                short_factor=[1.0] * 4, long_factor=[9.0] * 4)
    base = Pretrained(tiny("phi3", rope_parameters=rope, original_max_position_embeddings=20))
    latents = some_latents(base, "Comma_2")
    for long in False, True:
        queries, responses = rows(long)
        batch = make_batch(latents.placement, queries, responses)
        if long:
            pytest.raises(UserError, response_logits, base, latents, batch).match("from 20 on")
        else:
            same(response_logits(base, latents, batch)[0],
                 plain_logits(base, latents, "Comma_2", queries[0], responses[0]))


def test_that_prompt_tuning_of_peft_is_a_start_with_positions_of_its_own():
    peft = pytest.importorskip("peft")
    base = Pretrained(tiny("llama"))
    latents = some_latents(base, "Start_3-own")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.warns(FutureWarning) if NEW else nullcontext():  # PEFT's own
        theirs = peft.get_peft_model(tiny("llama"), config)
    theirs.prompt_encoder.default.embedding.weight.data.copy_(latents.vectors)
    words = torch.tensor([rows(True)[0][0]])
    batch = make_batch(latents.placement, words[:, :1].tolist(), words[:, 1:].tolist())
    logits = theirs(words, attention_mask=torch.ones_like(words)).logits  # (1, 3 + N, V)
    same(response_logits(base, latents, batch), logits[:, 3:-1])
