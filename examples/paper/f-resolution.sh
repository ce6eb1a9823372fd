#!/usr/bin/env bash
# Claim: for fine-tuning at a higher resolution position embeddings are interpolated in 2-D, since as they are they lose their meaning (§3.2).
#
# Pre-trained at 20 px, 5 x 5 patches, then tuned at 32 px, 8 x 8 patches, from the interpolated embeddings, from the old ones
# in raster order with zeros after them (none), and from random ones; evaluated before tuning and after it.
# The paper has no number for it. Under 10 minutes on one core beside other work. Writes paper/f/table.md and figure.png.
#
#     bash examples/paper/f-resolution.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

model=$(sized ViT-w16d1h1/4 ViT-w64d6h2/4 ViT-w256d8h4/4)
steps=$(sized 3 200 4000)
batch=$(sized 4 128 512)

# positions IN OUT KIND SEED: the same checkpoint with other position embeddings; of IN those at 20 px.
positions() {
    python3 - "$@" <<'PYTHON'
import dataclasses, pathlib, sys, torch
from vitcli.weights.checkpoint import load, save
source, target, kind, seed = sys.argv[1:]
small, (described, tensors) = load(source)[1]["pos_embed"], load(target)
if kind == "random":  # as a new model has them, with a deviation of 0.02
    new = 0.02 * torch.randn(tensors["pos_embed"].shape, generator=torch.Generator().manual_seed(int(seed)))
else:
    new = torch.zeros_like(tensors["pos_embed"])
    new[:, : small.shape[1]] = small
save(dataclasses.replace(described, path=pathlib.Path(target)), tensors | {"pos_embed": new})
PYTHON
}

for seed in $SEEDS; do
    run "small-$seed" pretrain --data "$DATA" --model "$model" --img-size 20 --steps "$steps" --batch-size "$batch" \
        --seed "$seed" > "$OUT/small-$seed.json"
    for kind in interpolated none random; do
        start=$OUT/$kind-$seed.safetensors
        if [ ! -e "$start" ]; then
            vit resize-posemb "$OUT/runs/small-$seed" "$start.part.safetensors" --img-size 32 --method paper --force --quiet > /dev/null
            [ $kind = interpolated ] || positions "$OUT/runs/small-$seed" "$start.part.safetensors" $kind "$seed"
            mv "$start.part.safetensors" "$start"
        fi
        vit eval "$start" --data "$DATA" --quiet --json | note updates=0 positions=$kind seed="$seed"
        for tuning in $(sized "2" "40" "100 1000"); do
            run "$kind-$tuning-$seed" finetune "$start" --data "$DATA" --steps "$tuning" --batch-size "$batch" --seed "$seed" |
                note updates="$tuning" positions=$kind seed="$seed"
        done
    done
done | table --rows updates --columns positions --x names --xlabel "updates at 32 px" \
    --title "$model on $data_name, $steps updates at 20 px, then at 32 px"
