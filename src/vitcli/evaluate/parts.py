"""A table of rows that is written in parts, each whole or not at all, and gone on with after a kill."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vitcli import files
from vitcli.errors import UsageError
from vitcli.evaluate.named import NoImage
from vitcli.text import as_json, cell, unicode

_ROWS, _SECONDS = 2_000, 60.0
"""Of a part at most: what a kill costs."""
_ABOUT, _LOCK, _MARK = "about.json", "lock", "vit predict, in parts"

Row = dict[str, Any]


class Table:
    """Rows on their way to the file `out`, a path a row, in `OUT.parts` beside it until all are there.

    `columns` are the rows' keys, `about` what rows depend on beside the image. Where parts of something else are there they are
    replaced with `force`. Raises UsageError where they are not to be, where the folder has files that are not vit's, or where another
    command is at work in it; ResourceError where nothing can be written.
    """

    def __init__(self, out: Path, columns: list[str], about: dict[str, Any], force: bool) -> None:
        self.out, self.columns = out, columns
        self.folder = out.with_name(f"{out.name}.parts")
        self.waiting: list[Row] = []
        self.last = time.monotonic()
        self.done = self.errors = 0
        own = {"made by": _MARK} | {k: v for k, v in about.items() if k != "checkpoint"} | {"columns": columns}
        self.lock = self._entered()
        self.parts: dict[Path, None] = {}
        try:
            self._begin(json.loads(as_json(own)), force)
        except BaseException as error:
            if not isinstance(error, UsageError) and not any(self.folder.glob("part-*")):
                self._remove_own()
            self.lock.close()
            raise

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.parts:  # nothing was saved, and nothing stays
            self._remove_own()
        self.lock.close()

    def _remove_own(self) -> None:
        with contextlib.suppress(OSError):
            files.remove_leftovers(self.folder)
            for path in (*self.parts, self.folder / _ABOUT, self.folder / _LOCK):
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _entered(self) -> IO[str]:
        """The folder's lock, which ends with the process. Nothing is written into a folder that is not a table's."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{self.folder} is there and no table's", "give --out another name")
        with files.disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            strange = next((p.name for p in self.folder.iterdir() if not self._is_own(p)), None)
            if strange is not None or (any(self.folder.iterdir()) and not self._is_marked()):
                raise UsageError(f"{self.folder} is there and no table's", "give --out another name")
            lock = (self.folder / _LOCK).open("a")
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_there = os.path.samestat(os.fstat(lock.fileno()), os.stat(self.folder / _LOCK))  # noqa: PTH116
            except OSError:
                is_there = False
            if not is_there:
                lock.close()
                raise UsageError(f"another command is writing {self.out}", "wait for it, or give another name")
        return lock

    def _is_own(self, path: Path) -> bool:
        name = path.name
        is_part = name.startswith("part-") and name.endswith(self.out.suffix)
        return name in (_ABOUT, _LOCK) or is_part or path in files.leftovers(self.folder)

    def _is_marked(self) -> bool:
        """Whether vit made the folder: it says so, or holds nothing but its lock."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
            return isinstance(kept, dict) and kept.get("made by") == _MARK
        own = [path for path in self.folder.iterdir() if path not in files.leftovers(self.folder)]
        return [path.name for path in own] in ([], [_LOCK]) and all(path.stat().st_size == 0 for path in own)

    def _begin(self, about: dict[str, Any], force: bool) -> None:
        place, kept = self.folder / _ABOUT, {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads(place.read_text(encoding="utf-8"))
        files.remove_leftovers(self.folder)
        differing = sorted(key for key in {*kept, *about} if kept.get(key) != about.get(key)) if kept else []
        if differing and not force:
            raise UsageError(
                f"{self.folder} has parts of another prediction: {', '.join(differing)} differ",
                "--force begins anew, another name keeps both",
            )
        if differing or not kept:
            for part in self.folder.glob("part-*"):
                part.unlink()
            files.write_json(place, about)
        self.parts = dict.fromkeys(sorted(self.folder.glob(f"part-*{self.out.suffix}")))

    def left(self, paths: Iterable[str | NoImage]) -> Iterator[str | NoImage]:
        """The paths that have no row yet. Raises UsageError where the first ones are others than those that have."""
        wanted = iter(paths)
        for part in self.parts:
            try:
                rows = list(self._read(part))
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                raise UsageError(
                    f"cannot read {part}: {str(error)[:200]}", f"remove {self.folder} to begin anew"
                ) from None
            for path, is_error in rows:
                named = next(wanted, None)
                self.done += 1
                self.errors += is_error
                name = named.path if isinstance(named, NoImage) else named
                if name is None or self._form(name) != path:
                    raise UsageError(
                        f"row {self.done:,} of the parts in {self.folder} is {path!r}, and image {self.done:,} is {name!r}",
                        f"the same images in the same order go on; remove {self.folder} to begin anew",
                    )
        return wanted

    def add(self, row: Row) -> None:
        self.waiting.append(row)
        self.done += 1
        self.errors += "error" in row
        if len(self.waiting) >= _ROWS or time.monotonic() - self.last > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put the rows that wait into a part of their own, named by its first row, so that doing it twice does no harm. Raises
        ResourceError.
        """
        if self.waiting:
            first = self.done - len(self.waiting)
            part = self.folder / f"part-{first:010}{self.out.suffix}"
            files.write_file(part, lambda temporary: self._write(temporary, self.waiting, is_first=first == 0))
            self.parts[part] = None
            self.waiting = []
        self.last = time.monotonic()

    def finish(self) -> None:
        """Put the parts together, and remove them. Raises ResourceError."""
        self.flush()
        size = sum(part.stat().st_size for part in self.parts)
        files.write_file(self.out, self._join, size)
        self._remove_own()

    # --- by format ---

    def _form(self, path: str) -> str:
        """A path as it stands in the table."""
        if self.out.suffix == ".jsonl":
            return str(json.loads(as_json(path)))
        return (unicode if self.out.suffix == ".parquet" else cell)(path)

    def _read(self, part: Path) -> Iterator[tuple[str, bool]]:
        """The path of each row, and whether it is an error."""
        if self.out.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(part, columns=["path", "error"])
            yield from zip(table["path"].to_pylist(), (e is not None for e in table["error"].to_pylist()), strict=True)
        elif self.out.suffix == ".csv":
            with part.open(encoding="utf-8", newline="") as file:
                for index, row in enumerate(csv.reader(file)):
                    if index or part != next(iter(self.parts)):
                        yield row[0], bool(row[self.columns.index("error")])
        else:
            with part.open(encoding="utf-8") as file:
                yield from ((row["path"], "error" in row) for row in map(json.loads, file))

    def _write(self, path: Path, rows: list[Row], is_first: bool) -> None:
        if self.out.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            schema = pa.schema({name: _kind(name) for name in self.columns})
            columns = {name: [_of_arrow(row.get(name)) for row in rows] for name in self.columns}
            pyarrow.parquet.write_table(pa.table(columns, schema=schema), path)
        elif self.out.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_first:
                    writer.writerow(self.columns)
                writer.writerows([_of_csv(row.get(name)) for name in self.columns] for row in rows)
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(as_json(row) + "\n" for row in rows)

    def _join(self, path: Path) -> None:
        if self.out.suffix != ".parquet":
            with path.open("wb") as file:
                for part in self.parts:
                    file.write(part.read_bytes())
                if not self.parts and self.out.suffix == ".csv":
                    file.write((",".join(self.columns) + "\n").encode())
            return
        import pyarrow as pa
        import pyarrow.parquet

        schema = pa.schema({name: _kind(name) for name in self.columns})
        if self.parts:
            schema = pyarrow.parquet.read_schema(next(iter(self.parts)))
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for part in self.parts:
                writer.write_table(pyarrow.parquet.read_table(part).cast(schema))


def _kind(name: str) -> Any:
    """The type of a column of Parquet."""
    import pyarrow as pa

    if name == "score":
        return pa.float64()
    if name in ("topk", "labels"):
        return pa.list_(pa.struct({"label": pa.string(), "id": pa.string(), "score": pa.float64()}))
    return pa.list_(pa.float32()) if name == "embedding" else pa.string()


def _of_arrow(value: Any) -> Any:
    if isinstance(value, str):
        return unicode(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{key: unicode(v) if isinstance(v, str) else v for key, v in item.items()} for item in value]
    return value


def _of_csv(value: Any) -> Any:
    if isinstance(value, list):
        return cell(json.dumps([item["label"] for item in value]))
    return cell(value) if isinstance(value, str) else value


def columns_of(about: dict[str, Any], nested: bool) -> list[str]:
    """Of a table of predictions; `topk` and the embedding only where the file's format holds lists, the `labels` of sets else as text."""
    with_id = any("id" in item for item in about["classes"])
    names = ["path", "label", *(["id"] if with_id else []), "score", "error"]
    sets = ["labels"] if about["wanted"]["sets"] else []
    lists = ["topk", *(["embedding"] if about["wanted"]["embedding"] else [])]
    return [*names, *sets, *(lists if nested else [])]
