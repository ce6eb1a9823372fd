#!/usr/bin/env bash
# Claim: with little data a ResNet is above a ViT, with more the gap closes or turns (§4.3, Figures 3 and 4).
#
# A ResNet and a ViT of the same compute, from random weights on 1, 5 and 100 % of the training images: every run
# sees as many images, so that less data means more passes over it. Under 20 minutes on one core beside other work.
# Writes paper/a/table.md and figure.png.
#
#     bash examples/paper/a-small-data.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

vit=$(sized ViT-w16d1h1/4 ViT-w64d6h2/4 ViT-w256d8h4/4)
resnet=$(sized R50x0.125 R50x0.125 R50x0.5)
steps=$(sized 3 150 5000)
batch=$(sized 4 128 512)

for seed in $SEEDS; do
    for part in 0.01 0.05 1; do
        for model in "$resnet" "$vit"; do
            run "${model/\//-}-$part-$seed" pretrain --data "$DATA" --set data.fraction=$part --model "$model" \
                --steps "$steps" --batch-size "$batch" --seed "$seed" |
                note "part of the training images=$part" model="$model" seed="$seed"
        done
    done
done | table --rows "part of the training images" --columns model --x rows --flops \
    --title "$resnet and $vit on $data_name, $steps updates of $batch images"
