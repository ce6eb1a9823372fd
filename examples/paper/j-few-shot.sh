#!/usr/bin/env bash
# Claim: few-shot transfer grows with pre-training (§4.3, Figure 4: linear 5-shot accuracy by the size of the pre-training data).
#
# The paper's least squares on frozen features, 5 and 25 images of each of the classes that pre-training has not seen, by the part of the
# other classes' images that it had, at equal updates. Under 10 minutes on one core beside other work. Writes paper/j/table.md and figure.png.
#
#     bash examples/paper/j-few-shot.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

model=$(sized ViT-w16d1h1/4 ViT-w64d4h2/4 ViT-w256d8h4/4)
steps=$(sized 3 120 10000)
batch=$(sized 2 128 512)
shots=$(sized 1,5 5,25 5,25)

halves
for seed in $SEEDS; do
    for part in 0.01 0.1 1; do
        run "$part-$seed" pretrain --data "$halves/first" --set data.fraction=$part --model "$model" --steps "$steps" \
            --batch-size "$batch" --seed "$seed" > "$OUT/$part-$seed.json"
        vit probe "$OUT/runs/$part-$seed" --data "$halves/second" --method fewshot --set probe.shots="$shots" --quiet --json |
            note "part of the pre-training images=$part" seed="$seed"
    done
done | table --rows "part of the pre-training images" --columns shots --x rows \
    --title "$model, $steps updates on half of the classes of $data_name, the others few-shot"
