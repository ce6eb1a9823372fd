#!/usr/bin/env bash
# What the features of some checkpoints are worth on your images: every probe of each, as one table.
#
#     examples/measure.sh photos CKPT...
set -euo pipefail

data=${1:?usage: measure.sh DATA CKPT...}
shift

printf '%-28s %8s %8s %8s\n' checkpoint linear k-NN 1-shot
for checkpoint in "$@"; do
    printf '%-28s' "$checkpoint"
    for probe in "linear" "knn --set probe.k=5" "fewshot --set probe.shots=1"; do
        # shellcheck disable=SC2086
        vit probe "$checkpoint" --data "$data" --quiet --json --method $probe |
            jq -r '.results[0].top1 * 1000 | round / 10' | xargs printf ' %7s%%'
    done
    echo
done

echo
echo "images that the last checkpoint is least sure of:"
find "$data" -name '*.jpg' | sort | vit predict "$checkpoint" - --json --quiet 2>/dev/null |
    jq -r 'select(.error | not) | [.score, .path, .label] | @tsv' | sort -n | head -n 3
vit eval "$checkpoint" --data "$data" --json --quiet |
    jq -r '"top-1 \(.top1) of \(.n) images; the hardest class is \(.classes | map(select(.n > 0)) | min_by(.top1).name)"'
