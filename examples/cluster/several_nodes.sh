#!/usr/bin/env bash
# Several machines: the same line on each, with its own number; the run folder is one that all of them see.
#
#     FIRST=10.0.0.1 NODES=2 NUMBER=0 examples/cluster/several_nodes.sh pretrain --data photos --out /shared/runs/big
#
# FIRST        the address of machine 0, where they meet
# NODES        how many machines
# NUMBER       which one this is, from 0
# PROCESSES    how many on each (default: as many as there are cards)
# PORT         where they meet (default: 29400)
# RESTARTS     how often they begin again where a process or a machine is lost (default: 3)
# ADDRESS      this machine's, where the others cannot find it by its name
set -euo pipefail
: "${FIRST:?the address of machine 0}" "${NODES:?how many machines}" "${NUMBER:?which machine this is, from 0}"
port=${PORT:-29400}

# A machine that replaces a lost one joins in the next round, in which torchrun does not repeat an address that it shared before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# A lost machine says nothing, so the others wait for it: two hours, unless told otherwise. An evaluation has to fit in.
export VIT_WORLD_TIMEOUT=${VIT_WORLD_TIMEOUT:-1800}

exec torchrun --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${RESTARTS:-3}" \
    ${ADDRESS:+--local-addr "$ADDRESS"} --rdzv-backend c10d --rdzv-endpoint "$FIRST:$port" --rdzv-id vit \
    --rdzv-conf "is_host=$((NUMBER == 0))" -m vitcli "${@:?usage: several_nodes.sh pretrain|finetune [OPTION]…}"
