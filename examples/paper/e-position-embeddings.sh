#!/usr/bin/env bash
# Claim: patches that are near each other, or in one row or column, have similar position embeddings (§4.5, Figure 7 centre).
#
# Of a trained ViT, DeiT-Ti/16 of the hub or a weights file CKPT: the mean cosine similarity of the position embeddings of two
# patches by their distance, along a row or column and along a diagonal. Seconds. Writes paper/e/table.md and figure.png.
#
#     bash examples/paper/e-position-embeddings.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

CKPT=${CKPT:-timm/deit_tiny_patch16_224.fb_in1k}
vit posemb-similarity "$CKPT" --plot "$OUT/figure.png" --force --quiet --json |
    python3 -c '
import json, sys
import numpy as np
r = json.load(sys.stdin)
(rows, columns), s = r["grid"], np.array(r["similarity"])
y, x = np.divmod(np.arange(rows * columns), columns)
dy, dx = abs(y[:, None] - y), abs(x[:, None] - x)
print("| patches apart | same row or column | diagonal |\n|---|---|---|")
for d in (1, 2, 3, 4, 6, 8, 10, 12):
    if d < min(rows, columns):
        straight = s[(np.minimum(dy, dx) == 0) & (np.maximum(dy, dx) == d)].mean()
        print("| {} | {:.2f} | {:.2f} |".format(d, straight, s[(dy == d) & (dx == d)].mean()))
print("\nMean cosine similarity of the position embeddings of two patches of {} x {}.".format(rows, columns))' |
    tee "$OUT/table.md"
