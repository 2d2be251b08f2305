#!/usr/bin/env bash
# Gradient checkpointing: none in eval(), no cache in train()
#
# Guess:   gradient_checkpointing_enable() saves memory whenever there is a backward pass, and
#          a cache passed in is used.
# Happens: in eval() nothing is checkpointed (no layer is run again). In train() the cache
#          passed in is set to None: one word behind four cached ones is read as
#          if it stood alone, with only a line in the log; several words raise.
# Matters: a frozen model is usually kept in eval(), so the memory is not saved; and after
#          train() learned vectors that sit in a cache have no effect.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0:
#   checkpointing False, train True: layer run 1 time(s), cache used
#   checkpointing True, train False: layer run 1 time(s), cache used
#   checkpointing True, train True: layer run 2 time(s), cache ignored
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import torch, transformers
torch.set_num_threads(1); torch.manual_seed(0)
transformers.logging.set_verbosity_error()
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(     # no dropout in it
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, initializer_range=.3)).requires_grad_(False)
runs, ids = [], torch.randint(0, 50, (1, 5))
model.model.layers[0].self_attn.register_forward_pre_hook(lambda *a: runs.append(1))
full = model.eval()(input_ids=ids).logits[:, -1]
alone = model(input_ids=ids[:, 4:], position_ids=torch.tensor([[4]])).logits[:, -1]
seen = []
for checkpointing, train in ((False, True), (True, False), (True, True)):
    if checkpointing: model.gradient_checkpointing_enable()
    model.train(train)
    runs.clear()
    model(inputs_embeds=torch.randn(1, 5, 32, requires_grad=True)).logits.sum().backward()
    n, cache = len(runs), transformers.DynamicCache(config=model.config)
    model.eval()(input_ids=ids[:, :4], cache=cache)
    last = model.train(train)(input_ids=ids[:, 4:], cache=cache).logits[:, -1]
    seen.append((n, "used" if torch.allclose(last, full, atol=1e-3) else
                 "ignored" if torch.allclose(last, alone, atol=1e-3) else "other"))
    print(f"checkpointing {checkpointing}, train {train}: layer run {n} time(s), cache {seen[-1][1]}")
assert seen == [(1, "used"), (1, "used"), (2, "ignored")], "changed"
E
