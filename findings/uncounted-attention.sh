#!/usr/bin/env bash
# Counters of FLOPs leave attention out
#
# Guess:   whoever inserts vectors counts what the longer row costs. For a linear layer (32 to
#          32 channels) on 4 heads of 256 slots a counter says 2,097,152; with attention over
#          these slots, 4 * 4 * 256 * 256 * 32 = 33,554,432 more.
# Happens: on a CPU nothing is added by any of these for scaled_dot_product_attention; fvcore
#          alone has a warning. Three of them miss attention that is written out with @, too.
#          torchinfo counts 1 of the 1,024 slots even of the linear layer.
# Matters: attention is what grows faster than the row. A table made so says that twice the
#          slots cost twice the work, for a model whose work has grown fourfold.
# Seen on 2026-11-30 with torch 2.13.0+cpu, fvcore 0.1.5.post20221221, thop
# 0.1.1.post2209072238, ptflops 0.7.5, torchinfo 1.8.0 (linear; + fused attention; + written out):
#   torch FlopCounterMode: 2097152 2097152 35651584
#   torch profiler: 2097152 2097152 35651584
#   fvcore: 2097152 2097152 35651584
#   ptflops, aten: 2097152 2097152 35651584
#   ptflops, pytorch: 2097152 2097152 2097152
#   thop: 2097152 2097152 2097152
#   torchinfo: 2048 2048 2048
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip torch==2.13.0 numpy==2.4.6 setuptools==80.9.0 || exit 2
$pip fvcore==0.1.5.post20221221 thop==0.1.1.post2209072238 ptflops==0.7.5 torchinfo==1.8.0 || exit 2
cat > "$d/count.py" <<'E'
import sys, torch, torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
torch.set_num_threads(1)

class Layer(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = torch.nn.Linear(32, 32, bias=False), kind
    def forward(self, x):
        x = self.linear(x)
        if self.kind == "fused":
            return F.scaled_dot_product_attention(x, x, x)
        return (x @ x.mT / 32 ** .5).softmax(-1) @ x if self.kind == "written out" else x

def count(tool, model, x):
    if tool == "torch FlopCounterMode":
        with FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops()
    if tool == "torch profiler":
        with torch.profiler.profile(with_flops=True) as seen:
            model(x)
        return sum(event.flops for event in seen.key_averages())
    if tool == "fvcore":
        from fvcore.nn import FlopCountAnalysis
        return 2 * FlopCountAnalysis(model, x).total()
    if tool == "thop":
        from thop import profile
        return int(2 * profile(model, (x,), verbose=False)[0])
    if tool.startswith("ptflops"):
        from ptflops import get_model_complexity_info
        return int(2 * get_model_complexity_info(model, tuple(x.shape[1:]), as_strings=False,
            print_per_layer_stat=False, backend=tool.split()[1])[0])
    from torchinfo import summary
    return 2 * summary(model, input_data=x, verbose=0).total_mult_adds

print(count(sys.argv[1], Layer(sys.argv[2]), torch.randn(1, 4, 256, 32)))
E
got=$(for tool in "torch FlopCounterMode" "torch profiler" fvcore "ptflops, aten" "ptflops, pytorch" thop torchinfo; do
  echo "$tool: $(for kind in linear fused "written out"; do
    "$d/v/bin/python" -W ignore "$d/count.py" "$tool" "$kind" 2>/dev/null | tail -1; done | xargs)"
done)
echo "$got"
diff <(echo "$got") <(sed -n 's/^#   \(.*: [0-9]* [0-9]* [0-9]*\)$/\1/p' "$0") || { echo changed; exit 1; }
