#!/usr/bin/env bash
# Virtual tokens that start some fifty times as long as words
#
# Guess:   PEFT's prompt tuning, random start (its default), begins with vectors of the size
#          of the model's words.
# Happens: they are drawn with standard deviation 1 whatever the table looks like: fifty
#          times the usual 0.02. PromptTuningInit.SAMPLE_VOCAB begins with words.
# Matters: learning rates and steps found for one start don't carry over to the other, nor
#          to one's own vectors; a comparison of methods may compare lengths.
# Seen on 2026-11-29 with torch 2.13.0+cpu, transformers 5.24.0, peft 0.21.2:
#   RANDOM: virtual tokens 8.54, words 0.16: 54 times
#   SAMPLE_VOCAB: virtual tokens 0.17, words 0.16: 1 times
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip transformers==5.24.0 || exit 2
$pip peft==0.21.2 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import torch, transformers
from peft import PromptTuningConfig, get_peft_model
torch.set_num_threads(1); torch.manual_seed(0)
ratio = {}
for start in ("RANDOM", "SAMPLE_VOCAB"):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4))
    words = model.get_input_embeddings().weight.norm(dim=1).mean().item()
    tuned = get_peft_model(model, PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=8, prompt_tuning_init=start))
    virtual = tuned.get_prompt(1)[0].norm(dim=1).mean().item()
    ratio[start] = virtual / words
    print(f"{start}: virtual tokens {virtual:.2f}, words {words:.2f}: {ratio[start]:.0f} times")
assert PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8).prompt_tuning_init.value == "RANDOM"
assert ratio["RANDOM"] > 20 and ratio["SAMPLE_VOCAB"] < 2, "changed"
E
