#!/usr/bin/env bash
# Claim: accuracy rises with the data and with the size of the model; the larger one needs more data (§4.3, Figures 3 and 4; Table 5).
#
# Three widths on 1, 5 and 100 % of the training images, from random weights, as many images seen in every run.
# Under 15 minutes on one core beside other work. Writes paper/b/table.md and figure.png.
#
#     bash examples/paper/b-scaling.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

models=$(sized "ViT-w16d1h1/4 ViT-w32d1h1/4" "ViT-w32d4h1/4 ViT-w64d4h2/4 ViT-w96d4h3/4" "ti/4 s/4 ViT-w512d12h8/4")
steps=$(sized 3 150 5000)
batch=$(sized 4 128 512)

for seed in $SEEDS; do
    for part in 0.01 0.05 1; do
        for model in $models; do
            run "${model/\//-}-$part-$seed" pretrain --data "$DATA" --set data.fraction=$part --model "$model" \
                --steps "$steps" --batch-size "$batch" --seed "$seed" |
                note "part of the training images=$part" model="$model" seed="$seed"
        done
    done
done | table --rows "part of the training images" --columns model --x rows \
    --title "ViTs on $data_name, $steps updates of $batch images"
