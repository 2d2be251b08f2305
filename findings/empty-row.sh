#!/usr/bin/env bash
# A row that may see nothing: zero here, the mean of everything there
#
# Guess:   a query whose mask forbids every key yields 0 (or NaN), however it is written.
# Happens: torch gives 0 for False and for -inf. With the smallest float number in place of
#          -inf, and in jax and mlx with a boolean mask, it gives the mean of ALL values,
#          the forbidden ones included.
# Matters: masks that hide inserted vectors or padding on the left leave such rows; they
#          leak what they were to hide, and ports disagree without an error.
# Seen on 2026-11-29 with torch 2.13.0+cpu, jax 0.10.2, mlx 0.32.4:
#   torch, False: zero
#   torch, -inf: zero
#   torch, smallest float: mean
#   jax, False: mean
#   mlx, False: mean
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip "jax[cpu]==0.10.2" "mlx[cpu]==0.32.4" || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import numpy as np, torch, jax, mlx.core as mx
torch.set_num_threads(1)
r = np.random.default_rng(0)
q, k, v = [r.standard_normal((1, 1, 3, 8)).astype("f") for _ in range(3)]
see = np.tril(np.ones((3, 3), bool)); see[0] = False       # the first query sees nothing
def sdpa(mask):
    return torch.nn.functional.scaled_dot_product_attention(
        *[torch.tensor(x) for x in (q, k, v)], attn_mask=mask)[0, 0, 0].numpy()
m = torch.tensor(see)
fill = lambda x: torch.zeros(3, 3).masked_fill(~m, x)
swap = lambda x: jax.numpy.array(x.swapaxes(1, 2))         # jax: length before heads
out = {"torch, False": sdpa(m), "torch, -inf": sdpa(fill(-torch.inf)),
       "torch, smallest float": sdpa(fill(torch.finfo(torch.float32).min)),
       "jax, False": np.array(jax.nn.dot_product_attention(
           swap(q), swap(k), swap(v), mask=jax.numpy.array(see)[None, None]))[0, 0, 0],
       "mlx, False": np.array(mx.fast.scaled_dot_product_attention(
           mx.array(q), mx.array(k), mx.array(v), scale=8 ** -.5, mask=mx.array(see)))[0, 0, 0]}
mean, got = v[0, 0].mean(0), []
for n, o in out.items():
    got.append("zero" if abs(o).max() == 0 else "mean" if np.allclose(o, mean, atol=1e-5) else "other")
    print(f"{n}: {got[-1]}")
assert got == ["zero", "zero", "mean", "mean", "mean"], "changed"
E
