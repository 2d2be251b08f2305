#!/usr/bin/env bash
# A rotary embedding that remembers the first positions it was given
#
# Guess:   rope(positions, seq_len=n) gives the angles of these positions.
# Happens: rotary-embedding-torch caches the angles by seq_len alone. The second call of the
#          same length, with other positions, gets the angles of the first (or its prefix).
#          Without seq_len, or with cache_if_possible=False, it is right.
# Matters: inserted vectors share positions, (0, 0, 1, 1, 2) in place of (0, 1, 2, 3, 4),
#          and the places differ from row to row: the positions would be ignored silently.
# Seen on 2026-11-29 with torch 2.13.0+cpu, rotary-embedding-torch 0.9.1:
#   seq_len=5: asked for [0, 0, 1, 1, 2], got [0.0, 1.0, 2.0, 3.0, 4.0]
#   no seq_len: asked for [0, 0, 1, 1, 2], got [0.0, 0.0, 1.0, 1.0, 2.0]
#   cache off: asked for [0, 0, 1, 1, 2], got [0.0, 0.0, 1.0, 1.0, 2.0]
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 || exit 2
$pip rotary-embedding-torch==0.9.1 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
import torch
from rotary_embedding_torch import RotaryEmbedding
shared = torch.tensor([0, 0, 1, 1, 2])
right = {}
for name, make, call in (("seq_len=5", {}, dict(seq_len=5)), ("no seq_len", {}, {}),
                         ("cache off", dict(cache_if_possible=False), dict(seq_len=5))):
    rope = RotaryEmbedding(dim=8, **make)
    rope(torch.arange(5), **call)                          # any call before
    angles = rope(shared, **call)[:, 0]
    right[name] = torch.equal(angles, shared.float())      # the first frequency is 1
    print(f"{name}: asked for {shared.tolist()}, got {angles.tolist()}")
assert list(right.values()) == [False, True, True], "changed"
E
