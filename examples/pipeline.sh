#!/usr/bin/env bash
# From a folder of class folders to a fine-tuned classifier and its mistakes, in one pipeline.
#
#     examples/pipeline.sh photos [SIZE]
set -euo pipefail

data=${1:?usage: pipeline.sh DATA [SIZE]}
size=${2:-64}

first=$(vit pretrain --data "$data" --model mu/8 --img-size 32 --epochs 2 --quiet)
final=$(vit finetune "$first" --img-size "$size" --epochs 2 --quiet)
vit eval "$final" --quiet --predictions predictions.jsonl --force --json |
    python3 -c 'import json, sys; r = json.load(sys.stdin); print("top-1: {top1:.1%} of {n} images".format(**r))'

echo "the mistakes it is surest of:"
python3 - <<'PYTHON'
import json

rows = [json.loads(line) for line in open("predictions.jsonl", encoding="utf-8")]
for row in sorted((r for r in rows if not r["correct"]), key=lambda r: -r["score"])[:5]:
    print(f"  {row['path'] or row['row']}: {row['target']}, taken for {row['prediction']} ({row['score']:.2f})")
PYTHON
