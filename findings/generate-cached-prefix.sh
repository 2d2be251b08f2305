#!/usr/bin/env bash
# generate() that leaves out the first words after cached vectors
#
# Guess:   two vectors are in the cache already; generate(input_ids=six words, cache=...)
#          reads the six words and goes on.
# Happens: without a mask, generate() takes the cached slots for the first words of
#          input_ids and feeds only the last four. No warning; other answers. With a
#          mask over all eight slots it feeds six, and the answer is that of inputs_embeds.
#          With eight vectors in the cache and six words it feeds four, too.
# Matters: precomputing learned vectors once and generating from the cache is the obvious
#          thing to do; the prompt is cut without a word.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0:
#   no cache:                         [44, 3, 44, 18, 5]
#   2 cached, mask of 8: fed 6 words, [44, 3, 44, 18, 5]
#   2 cached, no mask:   fed 4 words, [41, 20, 17, 2, 15]
#   8 cached, no mask:   fed 4 words
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
fed = []
model.model.register_forward_pre_hook(
    lambda m, a, k: fed.append((k["input_ids"] if k.get("input_ids") is not None
                                else k["inputs_embeds"]).shape[1]), with_kwargs=True)
words, vectors = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.randn(1, 8, 32)
def answer(n, **mask):
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs_embeds=vectors[:, :n], cache=cache)
    fed.clear()
    out = model.generate(input_ids=words, cache=cache, max_new_tokens=5, do_sample=False, **mask)
    return fed[0], out[0, 6:].tolist()
x = torch.cat([vectors[:, :2], model.get_input_embeddings()(words)], 1)
right = model.generate(inputs_embeds=x, max_new_tokens=5, do_sample=False)[0].tolist()
bare, masked, eight = answer(2), answer(2, attention_mask=torch.ones(1, 8).long()), answer(8)
print("no cache:                        ", right)
print("2 cached, mask of 8: fed %d words,"  % masked[0], masked[1])
print("2 cached, no mask:   fed %d words,"  % bare[0], bare[1])
print("8 cached, no mask:   fed %d words"  % eight[0])
assert masked == (6, right) and bare[0] == 4 and bare[1] != right and eight[0] == 4, "changed"
E
