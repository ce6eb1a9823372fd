#!/usr/bin/env bash
# One machine, a process a card; what follows is vit's.
#
#     examples/cluster/one_node.sh pretrain --data photos --batch-size 256 --out runs/big
#
# PROCESSES    how many (default: as many as there are cards)
set -euo pipefail

exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" -m vitcli "${@:?usage: one_node.sh pretrain|finetune [OPTION]…}"
