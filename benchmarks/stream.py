"""A stream of many small rows: memory as `vit pretrain` goes through it, and what is read, counted by row, when readers are killed.

    python benchmarks/stream.py [--rows 1000000] [--shards 200] [--kills 5]

Rows are scikit-learn's digits as PNG. First a reader of the batches, one process after the other, each killed with SIGKILL in the middle and
gone on from the last position that it had stored; every row has to come once. Then one epoch of `vit pretrain`, whose RssAnon is read from
/proc; its peak from 10,000 images on is compared with what it was there. Prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

BATCH = 1000
READ = """
import sys, numpy as np, torch
from vitcli.config import Config, apply
from vitcli.data.cache import working_view
from vitcli.data.loader import StreamLoader
from vitcli.data.stream_images import StreamImages
from vitcli.data.streaming import open_stream
from vitcli.world import World

data, state, seen, batch, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
values = {"data.source": data, "data.stream": True, "train.batch_size": batch, "augment.crop": "none", "model.img_size": (8, 8)}
config = apply(Config(), values | {"model.patch": (4, 4), "data.workers": 2})
stream = open_stream(config.data).stream
images = StreamImages(stream, working_view((8, 8), True, (8, 8), config.augment), config.data)
loader = StreamLoader(images, config, torch.device("cpu"), True, world=World())
start = int(open(state).read() or 0)
batches = loader.batches(start)
with open(seen, "r+b") as file:
    for step in range(start, steps):
        found = next(batches)
        file.seek(16 * batch * step)
        file.write(np.stack([found.ids.numpy(), found.labels.numpy()]).astype("<i8").tobytes())
        if step % 10 == 9:
            file.flush()
            open(state, "w").write(str(step + 1))
batches.close()
"""


def make(folder: Path, rows: int, shards: int) -> np.ndarray:
    digits = load_digits()
    blobs = []
    for pixels in np.rint(digits.images * (255 / 16)).astype(np.uint8):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        blobs.append({"bytes": out.getvalue(), "path": None})
    images, labels = pa.array(blobs), digits.target.astype(np.int64)
    for index, part in enumerate(np.array_split(np.arange(rows), shards)):
        table = pa.table({"image": images.take(pa.array(part % len(blobs))), "label": labels[part % len(blobs)]})
        pq.write_table(table, folder / f"train-{index:05d}-of-{shards:05d}.parquet", row_group_size=1000)
    return labels[np.arange(rows) % len(blobs)]


def counted(folder: Path, data: Path, labels: np.ndarray, kills: int) -> dict[str, object]:
    """An epoch read by processes that are killed."""
    state, seen, steps = folder / "position", folder / "seen", len(labels) // BATCH
    state.write_text("0")
    seen.write_bytes(bytes(16 * BATCH * steps))
    arguments = [sys.executable, "-c", READ, str(data), str(state), str(seen), str(BATCH), str(steps)]
    for number in range(kills):
        child = subprocess.Popen(arguments)
        until = steps * (number + 1) // (kills + 1)
        while int(state.read_text() or 0) < until and child.poll() is None:
            time.sleep(0.05)
        time.sleep(random.random() / 2)
        child.kill()
        child.wait()
    subprocess.run(arguments, check=True)
    found = np.frombuffer(seen.read_bytes(), "<i8").reshape(steps, 2, BATCH)
    ids = found[:, 0].flatten()
    right = int((labels[ids] == found[:, 1].flatten()).sum())
    times = np.bincount(ids, minlength=len(labels))
    return {
        "rows": len(ids),
        "lost": int((times == 0).sum()),
        "repeated": int((times > 1).sum()),
        "labels_right": right,
    }


def trained(folder: Path, data: Path, rows: int) -> dict[str, object]:
    """RssAnon in MB by images seen, of one epoch of training."""
    arguments = [
        "pretrain",
        "--data",
        str(data),
        "--set",
        "data.stream=true",
        "--model",
        "mu/4",
        "--batch-size",
        str(BATCH),
    ]
    arguments += [
        "--steps",
        str(rows // BATCH),
        "--device",
        "cpu",
        "--out",
        str(folder / "run"),
        "--set",
        "train.log_every_steps=2",
    ]
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "vitcli", *arguments, "--quiet"], stdout=subprocess.DEVNULL)
    metrics, curve = folder / "run" / "metrics.jsonl", []
    while child.poll() is None:
        time.sleep(0.25)
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            lines = metrics.read_text().splitlines()
            seen = json.loads(lines[-1])["images_seen"]
            curve.append((seen, int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1000))
        except (OSError, IndexError, ValueError, KeyError):
            continue
    at = next(mb for seen, mb in curve if seen >= 10_000)
    later = [mb for seen, mb in curve if seen >= 10_000]
    return {
        "images": curve[-1][0],
        "seconds": round(time.monotonic() - started, 1),
        "mb_at_10000": round(at, 1),
        "mb_highest_after": round(max(later), 1),
        "mb_at_the_end": round(later[-1], 1),
        "highest_over_10000": round(max(later) / at, 3),
        "code": child.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        labels = make(folder / "data", asked.rows, asked.shards)
        print(json.dumps(vars(asked) | {"read": counted(folder, folder / "data", labels, asked.kills)}), flush=True)
        print(json.dumps({"trained": trained(folder, folder / "data", asked.rows)}), flush=True)


if __name__ == "__main__":
    main()
