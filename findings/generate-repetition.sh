#!/usr/bin/env bash
# Repetition rules that cannot see a prompt of vectors
#
# Guess:   generate(inputs_embeds=table of the ids) answers as generate(input_ids=ids).
# Happens: so it does in plain greedy decoding, not with repetition_penalty or
#          no_repeat_ngram_size: those look at ids, and a prompt of vectors has none.
#          No warning. Passing input_ids beside inputs_embeds puts them right.
# Matters: to insert vectors one has to pass inputs_embeds; a comparison with the plain
#          model under the same settings then compares two ways of decoding.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0:
#   plain
#     ids     [20, 37, 38, 10, 36, 18, 19, 19]
#     vectors [20, 37, 38, 10, 36, 18, 19, 19]
#     both    [20, 37, 38, 10, 36, 18, 19, 19]
#   {'repetition_penalty': 5.0}
#     ids     [21, 37, 35, 19, 17, 25, 9, 33]
#     vectors [20, 37, 38, 10, 36, 18, 19, 35]
#     both    [21, 37, 35, 19, 17, 25, 9, 33]
#   {'no_repeat_ngram_size': 1}
#     ids     [21, 37, 35, 19, 17, 25, 9, 33]
#     vectors [20, 37, 38, 10, 36, 18, 19, 35]
#     both    [21, 37, 35, 19, 17, 25, 9, 33]
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import torch, transformers
torch.set_num_threads(1); torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, initializer_range=.3, eos_token_id=None)).eval()
ids = torch.arange(0, 50, 2)[None]                         # half the vocabulary
x = model.get_input_embeddings()(ids)
def go(rule, **inputs):
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, **rule)[0]
    return out[-8:].tolist()
for rule in ({}, dict(repetition_penalty=5.), dict(no_repeat_ngram_size=1)):
    a, b, c = go(rule, input_ids=ids), go(rule, inputs_embeds=x), go(rule, input_ids=ids, inputs_embeds=x)
    print(rule or "plain", "\n  ids    ", a, "\n  vectors", b, "\n  both   ", c)
    assert a == c and (a == b) == (not rule), "changed"
E
