"""Two data sets of one: every second class, and the others, so that a network can be moved to classes that it has not seen.

python3 halves.py DATA FOLDER        writes FOLDER/first and FOLDER/second, Parquet files with the splits of DATA
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np

from vitcli.config import DataConfig
from vitcli.data.sources import open_source


def main(data: str, out: Path) -> None:
    done = out / "whole"
    if done.exists() and done.read_text(encoding="utf-8") == data:
        return
    datasets.disable_progress_bars()
    source = open_source(DataConfig(source=data))
    for offset, half in enumerate(("first", "second")):
        names = [c.name for c in source.classes[offset::2]]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        (out / half).mkdir(parents=True, exist_ok=True)
        for split, part in (("train", source.train()), ("test", source.held_out())):
            assert part.labels is not None
            chosen = np.flatnonzero(part.labels % 2 == offset)
            images = [{"bytes": blob, "path": None} for blob, _ in part.blobs(chosen)]
            columns = {"image": images, "label": (part.labels[chosen] // 2).tolist()}
            datasets.Dataset.from_dict(columns, features).to_parquet(out / half / f"{split}.parquet")
    done.write_text(data, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
