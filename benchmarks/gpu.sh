#!/usr/bin/env bash
# All that is claimed of one GPU, in under ten minutes on an H100:
#
#     bash benchmarks/gpu.sh [CIFAR10]     CIFAR10: a preset, a hub id or a folder; sections by SECTIONS="table fed cifar resume bits tests"
#
# Results go to stdout and to $OUT (results/gpu beside this script, unless set). FIRST and SECOND are the time budgets of the two runs.
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:-cifar10}
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
has() { [[ " ${SECTIONS:-table fed cifar resume bits tests} " == *" $1 "* ]]; }
now() { date +%s; }

if has table; then
    echo "=== images a second, beside timm"
    python benchmarks/gpu_table.py --seconds "${SECONDS_EACH:-2}" | tee "$out/table.txt"
fi

if has fed; then
    echo "=== a step fed with real images over the step on one fixed batch"
    python benchmarks/fed_step.py "$data" --model Ti/4 --img-size 32 --batch 512 --rounds 5 | tee "$out/fed.txt"
    python benchmarks/fed_step.py "$data" --model S/16 --img-size 224 --batch 256 --rounds 3 --rand | tee -a "$out/fed.txt"
fi

if has cifar; then
    for budget in "${FIRST:-3m}" "${SECOND:-30s}"; do
        echo "=== CIFAR-10 in $budget"
        started=$(now)
        vit pretrain --data "$data" --device cuda --time-budget "$budget" --out "$runs/cifar-$budget" --json --quiet |
            tee "$out/cifar-$budget.json" |
            python -c 'import json,sys; r = json.load(sys.stdin); print({k: r[k] for k in ("steps", "images_seen", "images_per_second", "seconds")}, "top-1", r["eval"]["top1"])'
        echo "from start to exit: $(($(now) - started)) s"
    done
fi

if has resume; then
    echo "=== killed with -9 and run again"
    command=(vit pretrain --data "$data" --device cuda --steps 4000 --out "$runs/killed" --set train.save_every_steps=200 --quiet --json)
    "${command[@]}" > /dev/null 2>&1 &
    for _ in $(seq 120); do
        [ -e "$runs/killed/state/latest" ] && break
        sleep 1
    done
    sleep 2
    kill -9 %1
    wait %1 2> /dev/null
    "${command[@]}" | python -c 'import json,sys; r = json.load(sys.stdin); print("resumed from", r["resumed_from"], "steps", r["steps"], "top-1", r["eval"]["top1"])' | tee "$out/resume.txt"
fi

if has bits; then
    echo "=== the same command twice with run.deterministic=true, and without"
    for name in first second; do
        started=$(now)
        vit pretrain --data "$data" --device cuda --steps 500 --out "$runs/$name" --set run.deterministic=true --quiet > /dev/null
        echo "$name: $(($(now) - started)) s"
        sha256sum < "$runs/$name/model.safetensors"
    done | tee "$out/bits.txt"
    started=$(now)
    vit pretrain --data "$data" --device cuda --steps 500 --out "$runs/plain" --quiet > /dev/null
    echo "without: $(($(now) - started)) s" | tee -a "$out/bits.txt"
fi

if has tests; then
    echo "=== the tests on the device"
    VIT_TEST_DEVICE=cuda python -m pytest -q -n "$(($(nproc) / 2 + 1))" tests/model tests/data/test_on_device.py tests/data/test_loader.py tests/test_randomness.py tests/train | tail -n 15 | tee "$out/tests.txt"
fi
