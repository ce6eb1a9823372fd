#!/usr/bin/env bash
# Claim: a deep ViT on small data needs regularisation, and DropPath that grows linearly with depth does it better than dropout
# (the ViT paper has dropout alone, Table 3; stochastic depth is of "How to train your ViT?", Steiner et al., 2022, §3.3).
#
# 16 blocks on 10 % of the training images, without any augmentation but mirroring, many passes.
# Under 15 minutes on one core beside other work. Writes paper/h/table.md and figure.png.
#
#     bash examples/paper/h-drop-path.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

model=$(sized ViT-w16d3h1/8 ViT-w64d16h2/8 ViT-w192d24h3/4)
steps=$(sized 3 400 8000)
batch=$(sized 4 128 512)

for seed in $SEEDS; do
    for kind in none dropout "DropPath, linear"; do
        case $kind in
            none) values="" ;;
            dropout) values="--set model.dropout=0.1" ;;
            *) values="--set model.drop_path=0.1 --set model.drop_path_rule=linear" ;;
        esac
        # shellcheck disable=SC2086
        run "${kind%,*}-$seed" pretrain --data "$DATA" --set data.fraction="$(sized 0.5 0.1 0.1)" --model "$model" \
            --set augment.crop=none --set augment.mixup=0 --set train.low_res=0 --steps "$steps" --batch-size "$batch" \
            --seed "$seed" $values | note regularisation="$kind" seed="$seed"
    done
done | table --rows regularisation --title "$model on a part of $data_name, $steps updates of $batch images"
