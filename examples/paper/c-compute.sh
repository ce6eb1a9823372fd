#!/usr/bin/env bash
# Claim: a ViT needs less pre-training compute than a ResNet for the same accuracy after transfer (§4.4, Figure 5; Table 6).
#
# Both are pre-trained on half of the classes for two lengths or more, then fine-tuned to the other half, of which 2 % of the
# images are there. The compute is that of pre-training. Under 20 minutes on one core beside other work.
# Writes paper/c/table.md and figure.png.
#
#     bash examples/paper/c-compute.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

vit=$(sized ViT-w16d1h1/4 ViT-w64d6h2/4 ViT-w256d8h4/4)
resnet=$(sized R50x0.125 R50x0.125 R50x0.5)
lengths=$(sized "2 4" "20 180" "500 2000 8000")
tuning=$(sized 2 40 200)
batch=$(sized 4 128 512)

halves
for seed in $SEEDS; do
    for steps in $lengths; do
        for model in "$resnet" "$vit"; do
            name=${model/\//-}-$steps-$seed
            run "$name" pretrain --data "$halves/first" --model "$model" --steps "$steps" --batch-size "$batch" --seed "$seed" > "$OUT/$name.json"
            run "$name-tuned" finetune "$OUT/runs/$name" --data "$halves/second" --set data.fraction="$(sized 0.5 0.02 0.02)" \
                --steps "$tuning" --batch-size "$(sized 4 64 64)" --seed "$seed" |
                note updates="$steps" model="$model" seed="$seed" --cost "$OUT/$name.json"
        done
    done
done | table --rows updates --columns model --x flops --xlabel "training FLOPs of pre-training" --flops \
    --title "$resnet and $vit, pre-trained on half of the classes of $data_name and tuned to the others"
