#!/usr/bin/env bash
# The int8 model that passes gradients round its layers
#
# Guess:   an int8 model whose answers hardly change also gives nearly the same
#          gradient for its input vectors; if it cannot, it says so.
# Happens: torchao's Int8DynamicActivationInt8WeightConfig cuts the graph in every
#          linear layer. The residual path still carries a gradient, so nothing is
#          raised, but it hardly points the way of the true one (cosine near 0).
#          With the head quantised too, backward() raises. Int8WeightOnlyConfig is right.
# Matters: vectors tuned in front of a frozen, quantised model follow a gradient that
#          knows nothing of the layers; the loss may still fall a little.
# Seen on 2026-11-29 with torch 2.13.0+cpu, torchao 0.18.0, transformers 5.24.0:
#   Int8WeightOnlyConfig: logits differ by 0.09 (sd 1.19), cosine of the gradients 1.00
#   Int8DynamicActivationInt8WeightConfig: logits differ by 0.13 (sd 1.19), cosine of the gradients 0.10
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
$pip torchao==0.18.0 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import copy, torch, transformers, torch.nn.functional as F, torchao.quantization as q
torch.set_num_threads(1); torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, initializer_range=.15)).eval().requires_grad_(False)
ids = torch.arange(8)[None]
words = model.get_input_embeddings()(ids)
def run(m):
    x = words.clone().requires_grad_()
    logits = m(inputs_embeds=x).logits[0]
    F.cross_entropy(logits, ids[0]).backward()
    return logits.detach(), x.grad.flatten()
logits, grad = run(model)
cos = {}
for config in (q.Int8WeightOnlyConfig(), q.Int8DynamicActivationInt8WeightConfig()):
    small = copy.deepcopy(model)
    q.quantize_(small.model, config)                       # the head stays float
    l, g = run(small)
    name = type(config).__name__
    cos[name] = F.cosine_similarity(grad, g, 0).item()
    print(f"{name}: logits differ by {(l - logits).abs().max():.2f} (sd {logits.std():.2f}),"
          f" cosine of the gradients {cos[name]:.2f}")
assert cos["Int8WeightOnlyConfig"] > .99
assert cos["Int8DynamicActivationInt8WeightConfig"] < .3, "changed"
E
