#!/usr/bin/env bash
# Claim: LayerNorm before every branch, as in the paper (§3.1, Equations 2 and 3), trains where LayerNorm after every sum
# (Vaswani et al., 2017) needs warm-up or fails. The paper has no number for it; it cites Wang et al. (2019), Baevski and Auli (2019).
#
# 12 blocks, AdamW, with and without warm-up. Under 10 minutes on one core beside other work. Writes paper/i/table.md and figure.png.
#
#     bash examples/paper/i-pre-norm.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

model=$(sized ViT-w16d3h1/8 ViT-w64d12h2/8 ViT-w192d24h3/4)
steps=$(sized 3 200 8000)
batch=$(sized 4 128 512)

for seed in $SEEDS; do
    for warmup in 0 0.1; do
        for norm in pre post; do
            { run "$norm-$warmup-$seed" pretrain --data "$DATA" --model "$model" --set model.norm_place=$norm \
                --set train.init=paper --set optim.name=adamw --set optim.lr=0.002 --set optim.warmup=$warmup \
                --steps "$steps" --batch-size "$batch" --seed "$seed" || [ $? = 5 ]; } |
                note "warm-up, part of the run=$warmup" norm=$norm seed="$seed"
        done
    done
done | table --rows "warm-up, part of the run" --columns norm \
    --title "$model on $data_name, AdamW, $steps updates of $batch images"
