#!/usr/bin/env bash
# "Causal" with fewer queries than keys: two meanings
#
# Guess:   two queries at the end of five cached keys: with the causal switch the last
#          query sees all five keys, the one before it four.
# Happens: so it is in mlx (mask="causal"). In torch (is_causal=True) and in ONNX's Attention
#          (is_causal=1, onnxruntime) the triangle starts at the first key: the queries see
#          one and two keys. No error, no warning.
# Matters: whoever decodes several slots at once behind a cache (a word and its inserted
#          vectors) and uses the switch gets queries that see only the very start.
# Seen on 2026-11-29 with torch 2.13.0+cpu, onnx 1.23.2, onnxruntime 1.32.0, mlx 0.32.4:
#   torch: queries see 1 and 2 keys
#   onnxruntime: queries see 1 and 2 keys
#   mlx: queries see 4 and 5 keys
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip onnx==1.23.2 onnxruntime==1.32.0 "mlx[cpu]==0.32.4" || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import numpy as np, torch, onnxruntime, mlx.core as mx
from onnx import helper as h, TensorProto
torch.set_num_threads(1)
r = np.random.default_rng(0)
q, k, v = [r.standard_normal((1, 1, n, 8)).astype("f") for n in (2, 5, 5)]
t = [torch.tensor(x) for x in (q, k, v)]
sdpa = torch.nn.functional.scaled_dot_product_attention
seen = {s: sdpa(*t, attn_mask=torch.ones(2, 5).bool().tril(s)).numpy() for s in (0, 3)}
info = lambda n, x: h.make_tensor_value_info(n, TensorProto.FLOAT, x.shape)
graph = h.make_graph([h.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=1)], "g",
                     [info("q", q), info("k", k), info("v", v)], [info("y", q)])
file = h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=11)
out = {"torch": sdpa(*t, is_causal=True).numpy(),
       "onnxruntime": onnxruntime.InferenceSession(file.SerializeToString()).run(None, dict(q=q, k=k, v=v))[0],
       "mlx": np.array(mx.fast.scaled_dot_product_attention(
           mx.array(q), mx.array(k), mx.array(v), scale=8 ** -.5, mask="causal"))}
got = {n: [s for s in seen if np.allclose(o, seen[s], atol=1e-4)] for n, o in out.items()}
for n, s in got.items():
    print(f"{n}: " + {0: "queries see 1 and 2 keys", 3: "queries see 4 and 5 keys"}[s[0]])
assert got == {"torch": [0], "onnxruntime": [0], "mlx": [3]}, "changed"
E
