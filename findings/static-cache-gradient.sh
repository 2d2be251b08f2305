#!/usr/bin/env bash
# A static cache that no gradient passes twice
#
# Guess:   vectors fed into a cache, then words: the loss of the words gives the vectors
#          the same gradient with any cache.
# Happens: with DynamicCache it is that of one pass without a cache. With StaticCache
#          backward() raises: the second call wrote into tensors that the first needs.
#          And copy.deepcopy of a DynamicCache filled with gradient raises, too.
# Matters: tuning vectors as a cached prefix, shared by several continuations, works with a
#          DynamicCache filled anew for each; not with the cache meant for compiling.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0:
#   deepcopy: Only Tensors created explicitly by the user (graph leaves) s
#   DynamicCache: the gradient of one pass
#   StaticCache: one of the variables needed for gradient computation has bee
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import copy, torch, transformers
torch.set_num_threads(1); torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4)).eval().requires_grad_(False)
words, start = torch.randint(0, 50, (1, 5)), torch.randn(1, 2, 32)
x = start.clone().requires_grad_()
model(inputs_embeds=torch.cat([x, model.get_input_embeddings()(words)], 1)).logits[:, 2:].sum().backward()
true, found = x.grad, []
for cache in (transformers.DynamicCache(config=model.config),
              transformers.StaticCache(config=model.config, max_cache_len=16)):
    x = start.clone().requires_grad_()
    model(inputs_embeds=x, cache=cache)
    if not found:
        try: copy.deepcopy(cache); copied = True
        except RuntimeError as e: copied = False; print("deepcopy:", str(e)[:60])
    try:
        model(input_ids=words, cache=cache).logits.sum().backward()
        found.append(torch.allclose(x.grad, true, atol=1e-4))
    except RuntimeError as e: found.append(str(e)[:60])
    print(f"{type(cache).__name__}: {found[-1] if found[-1] is not True else 'the gradient of one pass'}")
assert found[0] is True and "inplace" not in str(found[0]) and isinstance(found[1], str) and not copied, "changed"
E
