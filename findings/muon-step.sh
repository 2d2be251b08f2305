#!/usr/bin/env bash
# One rate, and a step of Muon five times as long
#
# Guess:   Muon makes all singular values of a step about 1, times the rate. So the first step
#          at rate 1 on four vectors of width 128 has a length of some 2, stored as (4, 128)
#          or as (128, 4), in any library.
# Happens: torch, muon-optimizer and heavyball multiply (128, 4) by sqrt(128 / 4), taking rows
#          for outputs; optax multiplies (4, 128) so, taking columns for outputs; keras makes
#          both 4 long, 0.2 times the root of the number of entries. No message.
# Matters: tuned vectors stand in rows. A rate that is right in torch is twice as much in keras
#          and five times in optax; to store the vectors in columns turns that round.
# Seen on 2026-11-30 with torch 2.13.0+cpu, muon-optimizer 0.1.0, heavyball 3.2.1, keras 3.15.1,
# optax 0.2.8, jax 0.10.2 (lengths of the step: (4, 128), (128, 4)):
#   torch: 2 10
#   muon-optimizer: 2 10
#   heavyball: 2 11
#   keras: 4 4
#   optax: 10 2
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip muon-optimizer==0.1.0 heavyball==3.2.1 keras==3.15.1 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 || exit 2
cat > "$d/step.py" <<'E'
import os, sys, torch
os.environ["KERAS_BACKEND"] = "torch"
torch.set_num_threads(1)

def step(library, gradient):
    if library == "keras":
        import keras
        variable = keras.Variable(torch.zeros_like(gradient))
        optimizer = keras.optimizers.Muon(learning_rate=1.0)
        optimizer.build([variable])
        optimizer.apply([gradient], [variable])
        return variable.value.detach()
    if library == "optax":
        import jax.numpy as jnp, numpy as np, optax
        optimizer, zeros = optax.contrib.muon(1.0), jnp.zeros(gradient.shape)
        update, _ = optimizer.update(jnp.array(gradient.numpy()), optimizer.init(zeros), zeros)
        return torch.tensor(np.array(update))
    weights = torch.nn.Parameter(torch.zeros_like(gradient))
    if library == "torch":
        from torch.optim import Muon
    elif library == "heavyball":
        from heavyball import Muon
    else:
        from muon import SingleDeviceMuon as Muon
    optimizer = Muon([weights], lr=1.0)
    weights.grad = gradient.clone()
    optimizer.step()
    return weights.detach()

for library in sys.argv[1:]:
    gradient = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    lengths = [step(library, each).norm() for each in (gradient, gradient.T.contiguous())]
    print(f"{library}:", *(f"{length:.0f}" for length in lengths))
E
got=$("$d/v/bin/python" -W ignore "$d/step.py" torch muon-optimizer heavyball keras optax 2>/dev/null)
echo "$got"
diff <(echo "$got") <(sed -n 's/^#   \([a-z-]*: [0-9]* [0-9]*\)$/\1/p' "$0") || { echo changed; exit 1; }
