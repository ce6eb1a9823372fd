#!/usr/bin/env bash
# Claim: some heads attend globally already in the lowest layers, and attention distance grows with depth (§4.5, Figure 7 right).
#
# The mean attention distance of every head of a trained ViT, DeiT-Ti/16 of the hub or a weights file CKPT, over 128 photographs
# of DATA (default: pets). Seconds, once they are there. Writes paper/d/table.md and figure.png.
#
#     bash examples/paper/d-attention-distance.sh
set -euo pipefail
DATA=${DATA:-pets}
source "$(dirname "$0")/common.sh"

CKPT=${CKPT:-timm/deit_tiny_patch16_224.fb_in1k}
vit attn-distance "$CKPT" --data "$DATA" --images "$(sized 4 128 128)" --plot "$OUT/figure.png" --force --quiet --json |
    python3 -c '
import json, sys
r = json.load(sys.stdin)
print("| layer | nearest head | mean | farthest head |\n|---|---|---|---|")
for layer in r["layers"]:
    print("| {} | {:.0f} | {:.0f} | {:.0f} |".format(layer["layer"], min(layer["heads"]), layer["mean"], max(layer["heads"])))
print("\nMean attention distance in pixels over {} images of {} x {} px.".format(r["images"], *r["img_size"]))' |
    tee "$OUT/table.md"
