#!/usr/bin/env bash
# New rows of the embedding table that are all alike
#
# Guess:   resize_token_embeddings(n + 4) starts four new tokens at random, as words start.
# Happens: they are the mean of the words plus a noise some ten thousand times smaller than the
#          words' spread: practically one vector four times. mean_resizing=False starts
#          them as words (and an embedding that was frozen stays frozen, new rows too).
# Matters: learned tokens added to the vocabulary begin as copies of one vector, close to
#          0 for a centred table; "random start" in a comparison would be wrong.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0:
#   mean_resizing=True: spread of the new rows / of the words 2.9e-05, norm 0.007 / 0.112, trainable False
#   mean_resizing=False: spread of the new rows / of the words 9.6e-01, norm 0.118 / 0.112, trainable False
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
found = {}
for mean in (True, False):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4)).requires_grad_(False)
    model.resize_token_embeddings(204, mean_resizing=mean)
    table = model.get_input_embeddings().weight
    found[mean] = table[200:].std(0).mean() / table[:200].std(0).mean()
    print(f"mean_resizing={mean}: spread of the new rows / of the words {found[mean]:.1e},"
          f" norm {table[200:].norm(dim=1).mean():.3f} / {table[:200].norm(dim=1).mean():.3f},"
          f" trainable {table.requires_grad}")
    assert not table.requires_grad
assert found[True] < 1e-2 and found[False] > .5, "changed"
E
