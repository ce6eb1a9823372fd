#!/usr/bin/env bash
# Claim: masked patch prediction without labels is above training from scratch and below supervised pre-training
# (§4.6: ViT-B/16 on ImageNet 79.9 %, 2 % above scratch, 4 % below).
#
# Pre-trained on half of the classes, with labels or without, then tuned to 10 % of the images of the other half, as many
# updates from each. Under 10 minutes on one core beside other work. Writes paper/g/table.md and figure.png.
#
#     bash examples/paper/g-masked-patches.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

model=$(sized ViT-w16d1h1/4 ViT-w64d4h2/4 ViT-w256d8h4/4)
steps=$(sized 3 150 10000)
tuning=$(sized 2 100 1000)
batch=$(sized 4 128 512)

halves
for seed in $SEEDS; do
    common="--steps $tuning --batch-size $(sized 4 64 128) --seed $seed --set data.fraction=$(sized 0.5 0.1 0.1)"
    # shellcheck disable=SC2086
    run "scratch-$seed" pretrain --data "$halves/second" --model "$model" $common | note pre-training=none seed="$seed"
    for objective in masked-patch classify; do
        name=$objective-$seed
        run "$name" pretrain --data "$halves/first" --model "$model" --objective $objective --steps "$steps" \
            --batch-size "$batch" --seed "$seed" > "$OUT/$name.json"
        # shellcheck disable=SC2086
        run "$name-tuned" finetune "$OUT/runs/$name" --data "$halves/second" $common |
            note pre-training="${objective/classify/supervised}" seed="$seed"
    done
done | table --rows pre-training \
    --title "$model, $steps updates on half of the classes of $data_name, $tuning on the others"
