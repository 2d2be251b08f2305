#!/usr/bin/env bash
# A version of transformers that changes the length of Gemma's input vectors
#
# Guess:   the same weights and the same inputs_embeds give the same logits in 4.57.1
#          and in 5.24.0.
# Happens: Gemma and Gemma 2 multiplied whatever came in as inputs_embeds by
#          sqrt(width) in 4.57.1. In 5.24.0 (as Gemma 3 did already) the factor sits in the
#          embedding module: what comes in is taken as it is. Word ids: same logits.
# Matters: vectors tuned with the old version are sqrt(width) times too short in the new
#          one (48 times at width 2304), silently. Vectors begun from rows of the table
#          (weight[ids] in place of module(ids)) too.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 4.57.1 and 5.24.0:
#   4.57.1
#   gemma: inputs_embeds times 8.0, a word's logit 0.272
#   gemma2: inputs_embeds times 8.0, a word's logit -0.535
#   gemma3_text: inputs_embeds times 1.0, a word's logit 0.028
#   5.24.0
#   gemma: inputs_embeds times 1.0, a word's logit 0.272
#   gemma2: inputs_embeds times 1.0, a word's logit -0.535
#   gemma3_text: inputs_embeds times 1.0, a word's logit 0.028
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
cat > "$d/show.py" <<'E'
import torch, transformers
torch.set_num_threads(1)
for name in ("gemma", "gemma2", "gemma3_text"):
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(
        name, vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16)).eval()
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) * .1    # the same in both versions
    x = torch.randn(1, 5, 64, generator=g)
    with torch.no_grad():
        first = model(inputs_embeds=x, output_hidden_states=True).hidden_states[0]
        words = model(input_ids=torch.arange(1, 6)[None]).logits[0, -1, 0]
    print(f"{name}: inputs_embeds times {first.norm() / x.norm():.1f}, a word's logit {words:.3f}")
E
for version in 4.57.1 5.24.0; do
    python3 -m venv "$d/$version"; pip="$d/$version/bin/pip install -q --no-compile"
    $pip torch==2.13.0 numpy==2.4.6 || exit 2
    $pip transformers==$version || exit 2
    echo $version; "$d/$version/bin/python" -W ignore "$d/show.py" | tee "$d/$version.txt"
done
[ "$(grep -c 'times 8.0' "$d/4.57.1.txt")" = 2 ] && [ "$(grep -c 'times 1.0' "$d/5.24.0.txt")" = 3 ] ||
    { echo changed; exit 1; }
