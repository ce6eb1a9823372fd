"""Does each test of a fault fail when what protects from the fault is taken away?

    python tests/faults/mutations.py [ROW…]

For every mutation a copy of the package is changed, never the package itself, and the row's tests are run on the copy.
A test that passes all the same is reported, and the exit code is then 1. Takes about ten minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vitcli

TESTS = Path(__file__).parents[1]
PACKAGE = Path(vitcli.__file__).parent


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`; without `old`, `new` is added at its end, where it replaces a definition."""

    row: int
    what: str
    file: str
    test: str
    new: str
    old: str = ""


M = Mutation
MUTATIONS = [
    M(1, "optimizer state is not restored", "train/trainer.py", "row_01_kills", "pass", 'self.optimizer.restore(groups.get("optimizer", {}))'),
    M(1, "metrics are not rewound", "train/runlog.py", "row_01_kills", "pass\n", "rewind(path, step)\n"),
    M(2, "steps are written in place, and believed", "files.py", "row_02_killed_inside", """
def write_folder(path, fill, size=0):
    path.mkdir(parents=True)
    fill(path)
    (path / MANIFEST).write_text("{}")
    fsync_path(path / MANIFEST)
    fsync_path(path)
def folder_fault(path):
    return ""
"""),
    M(2, "a partial step is not named", "files.py", "row_02_the_older", "def remove_leftovers(folder):\n    return []"),
    M(3, "one step is kept", "train/state.py", "row_03", "KEPT_STEPS = 1", "KEPT_STEPS = 2"),
    M(3, "steps are counted, not verified", "train/state.py", "row_03_never", "else:", "elif not files.folder_fault(path):"),
    M(3, "a deletion is not renamed first", "files.py", "row_03_killed", "def remove_folder(path):\n    _remove(path)"),
    M(3, "an existing step is written again", "train/state.py", "row_03_a_step", "import shutil; shutil.rmtree(path, ignore_errors=True)\n    if True:", "if not path.exists():"),
    M(4, "randomness is consumed, not addressed", "train/objectives/base.py", "row_04", 'self._calls = getattr(self, "_calls", 0) + 1\n        keep = model.draw(seed, self._calls, len(batch))', "keep = model.draw(seed, step, len(batch))"),
    M(5, "what was read ahead is lost on resume", "data/loader.py", "row_05", "itertools.count(start + bool(depth and start), count)", "itertools.count(start, count)"),
    M(7, "signals are not handled", "train/signals.py", "row_07_a_signal_finishes", "names: tuple[str, ...] = ()", 'names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")'),
    M(7, "an interruption does not save", "train/loop.py", "row_07_a_signal_finishes", "pass", 'session.save("saved", Interrupted.code)'),
    M(7, "an evaluation is not interrupted", "train/session.py", "row_07_a_signal_while", "self.log.progress(what, done, total)", "self.log.progress(what, done, total)\n        self.stop_if_signalled()"),
    M(7, "a signal before the first step is let through", "train/run.py", "row_07_a_signal_before", "if False:", "if isinstance(error, Stopped) and saved:"),
    M(8, "a second signal waits", "train/signals.py", "row_08", "pass", "os._exit(128 + number)"),
    M(10, "a full disk is not told from others", "files.py", "row_10", "if False:", "if error.errno in FULL:"),
    M(10, "a failed save leaves its half", "files.py", "row_10_the_disk", "def _keep(*a, **k): pass\nimport types\nshutil = types.SimpleNamespace(rmtree=_keep, disk_usage=shutil.disk_usage)"),
    M(10, "an error of a write in the background is lost", "train/state.py", "row_10_the_disk", "pass\n", "raise error\n"),
    M(10, "a full disk of the cache stops the run", "data/cache.py", "row_10_the_disk_of_the_cache", "if False:", "if reason.errno in files.FULL and not insists:"),
    M(11, "errors of the disk are neither foreseen nor understood", "files.py", "row_11_an", """
def check_out(path, force, folder=False):
    pass
@contextlib.contextmanager
def disk_errors(path, needed=0):
    yield
"""),
    M(11, "a cache has one place", "data/cache.py", "row_11_a_cache", "        if False:\n", "        if not files.is_writable(home):\n"),
    M(12, "space is not asked for", "train/run.py", "row_12", "if False:", "if needed > free:"),
    M(13, "the state's sha256 is not compared", "files.py", "row_13_a_flipped_bit_in_the_state", 'return "" if True else', 'return "" if sha256_file(file) == entry["sha256"] else'),
    M(13, "a checkpoint's sha256 is not compared", "weights/checkpoint.py", "row_13_a_flipped_bit_in_a_named", "if False:", "if fault:"),
    M(13, "without a whole step a run begins anew", "train/state.py", "row_13_where", "if False:\n        raise", "if broken:\n        raise"),
    M(13, "a finished run is believed", "train/runfolder.py", "row_13_a_finished", "pass", "check_digest(open_checkpoint(folder / WEIGHTS))"),
    M(14, "nobody looks what a file is", "weights/header.py", "row_14_what", "def not_weights(start):\n    return ''"),
    M(15, "pickles may run code", "weights/pickles.py", "row_15_a_malicious", """
def _called(self, function, arguments, call=Reader._call):
    import importlib
    made = call(self, function, arguments)
    known = isinstance(function, Global) and not function.module.startswith(("torch", "collections"))
    return getattr(importlib.import_module(function.module), function.name)(*map(str, arguments)) if known else made
Reader._call = _called
"""),
    M(16, "prefixes are not stripped", "weights/keys.py", "row_16_prefixes", "def strip_prefixes(keys):\n    return {key: key for key in keys}"),
    M(16, "shapes and keys are not checked", "weights/describe.py", "row_16_missing", "def check_shapes(*a):\n    pass"),
    M(17, "a loss or gradient is not looked at", "train/step.py", "row_17", "if False:", "if not (math.isfinite(total) and math.isfinite(norm)):"),
    M(17, "saved numbers are not looked at", "train/state.py", "row_17_weights or row_18_a_state", "Saved.unfinite = lambda self: ''"),
    M(18, "loaded weights are not looked at", "weights/checkpoint.py", "row_18_a_checkpoint", "if False:", "if tensor.is_floating_point() and not torch.isfinite(tensor).all():"),
    M(19, "bad images are neither refused nor capped", "data/cache.py", "row_19", "def _check_bad(*a):\n    pass"),
    M(19, "the report does not count", "train/loop.py", "row_19_skipped", "if False:", "if session.unreadable:"),
    M(20, "evaluation reads on", "data/cache.py", "row_20_an", "pass", "raise bad_image(self.split, position, reason)"),
    M(21, "any number of pixels is decoded", "data/decode.py", "row_21 and 100", "if False:", "if megapixels > max_megapixels:"),
    M(22, "16 bits are cut", "data/colour.py", "row_22", "np.rint(gray)", "np.rint(gray / 257 if white == 65535 else gray * np.float32(255 / white))"),
    M(22, "EXIF is ignored", "data/decode.py", "row_22", "def orientation(image):\n    return 1"),
    M(23, "truncated files are filled up", "data/decode.py", "row_23", "from PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = True"),
    M(24, "classes are matched by position", "classes.py", "row_24", "def match(wanted, known):\n    return list(range(len(wanted)))"),
    M(25, "labels are not checked", "data/columns.py", "row_25", "if False:", "if len(wrong):"),
    M(26, "any configuration is the same", "train/runfolder.py", "row_26", "def _is_same(folder, plan):\n    return True"),
    M(27, "nothing is locked", "train/runfolder.py", "row_27", "pass", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"),
    M(27, "the folder is described before it is locked", "train/run.py", "row_27_of_two", "is_new, made = place.how == 'new', ()\n    if is_new:\n        (place.folder / 'state').mkdir(parents=True, exist_ok=True)\n        runfolder.create(place.folder, plan)\n        import time as t; t.sleep(0.5)\n    is_new = False\n    if False:", 'is_new, made = place.how == "new", [p for p in (place.folder, *place.folder.parents) if not p.exists()]\n    if not is_new:'),
    M(30, "nobody asks whether the reader lives", "data/prefetch.py", "row_30 and dies", "if False:", "if not alive:"),
    M(30, "a thread that cannot be started is a bug", "data/prefetch.py", "row_30 and started", "except ZeroDivisionError as error:", "except RuntimeError as error:"),
    M(30, "a thread that cannot be started to decode is a bug", "data/cache.py", "row_30 and started", "except ZeroDivisionError as error:", "except RuntimeError as error:"),
    M(31, "memory is not told from other errors", "errors.py", "row_31", "def is_out_of_memory(error):\n    return False"),
    M(31, "the hint does not divide the batch", "train/loop.py", "row_31_out_of_memory_on_cuda", "if", "if train.batch_size % n == 0 and"),
    M(32, "the library's retries are waited for", "hub.py", "row_32", "def obstacle(*a):\n    return None"),
    M(33, "a sink is called directly", "train/runlog.py", "row_33_a_sink_that_hangs", "_Apart.__call__ = lambda self, event, fields: self.sink(event, fields)"),
    M(33, "a sink that raises stops the run", "train/runlog.py", "row_33 and raises", "except ZeroDivisionError as error:\n                self._sinks", "except Exception as error:\n                self._sinks"),
    M(34, "closed streams stay closed", "cli/app.py", "row_34_a_closed", "    console.take_any_text()", "    _occupy_streams()\n    console.take_any_text()"),
    M(34, "nobody to read is an error", "cli/console.py", "row_34_the_exit", "raise", "raise Unread from None"),
    M(34, "notes that cannot be written stop the run", "cli/console.py", "row_34_notes", "if True:\n        sys.stderr", "with contextlib.suppress(OSError):\n        sys.stderr"),
    M(34, "lines of metrics are dropped", "train/runlog.py", "row_34_lines", "except OSError as error:\n            self._waiting.clear()\n            return f\"{self.path}", "except OSError as error:\n            return f\"{self.path}"),
    M(35, "a broken header raises anything", "weights/header.py", "row_35_some", "except ZeroDivisionError as error:", "except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:"),
    M(35, "a broken manifest raises anything", "files.py", "row_35_some", "_BROKEN = (ZeroDivisionError,)"),
    M(36, "an existing folder is replaced whole", "files.py", "row_36_force", """
def write_into_folder(path, fill, size=0):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    fill(path)
"""),
    M(36, "a run is written into", "weights/export.py", "row_36_what", 'if False and form != "onnx" and ((out', 'if form != "onnx" and ((out'),
    M(36, "the source is written over", "weights/export.py", "row_36_what", "if False and taken.exists()", "if taken.exists()"),
    M(36, "what is checked too late stays", "weights/export.py", "row_36_other", "TOLERANCE = 1e9"),
    M(37, "the whole folder goes", "train/run.py", "row_37", "def _undo(folder, existed):\n    import shutil\n    shutil.rmtree(folder)"),
    M(38, "what a kill left stays", "files.py", "row_38", "def remove_dead(folder):\n    pass"),
    M(38, "what is at work is taken for dead", "files.py", "row_38_what_another", "def _lock(descriptor):\n    return True"),
    M(38, "any name is vit's own", "files.py", "row_38_leftovers", "_OWN = re.compile(\".*\", re.DOTALL)"),
    M(38, "whose it is is not asked", "files.py", "row_38_leftovers", "is_own = True", 'is_own = not hasattr(os, "geteuid") or seen.st_uid == os.geteuid()'),
    M(47, "what fails for a moment is a bad image", "data/cache.py", "row_47_what_fails", "if False:", "if blob is None and opened is not None and opened[positions[index]]:"),
    M(47, "what cannot be opened is not in a cache's name", "data/cache.py", "row_47_what_cannot", "np.arange(len(split)).tobytes()", "split.digests(progress).tobytes()"),
    M(35, "whatever zipfile raises comes out", "data/folders.py", "row_35_a_zip", "except (OSError, zipfile.BadZipFile) as error:  # zipfile", "except Exception as error:  # zipfile"),
    M(52, "names of any length are asked for", "data/listing.py", "row_52_tables", "(table.parent / value).is_file()", "os.path.isfile(table.parent / value)"),
    M(39, "rows name anything", "data/identity.py", "row_39_a_row_names", "return path", 'return files.inside(self.folder, path) if inner == path else ""'),
    M(39, "addresses in lists are files", "data/listing.py", "row_39_a_listed", "if False and re.search", "if not path or re.search"),
    M(39, "a saved data set is not looked at", "data/folders.py", "row_39_a_saved", "def _check_saved(root):\n    pass"),
    M(39, "a card is not looked at", "data/hub_source.py", "row_39_a_card", "def _check_cards(hub_id, cards):\n    pass"),
    M(39, "rows of the hub are not looked at", "data/hub_source.py", "row_39_a_row_of_the_hub", "def _check_rows(part, places):\n    pass"),
    M(41, "any plugin may read", "data/decode.py", "row_41", "_FOREIGN = ()\ndef _here():\n    Image.init()\n    return list(Image.OPEN)"),
    M(41, "pieces are not counted", "data/decode.py", "row_41_bombs", "_MOST_PIECES = 10**12"),
    M(41, "strips are not counted", "data/decode.py", "row_41_bombs", "_MOST_STRIPS = 10**12"),
    M(41, "scans are not counted", "data/decode.py", "row_41_bombs", "_MOST_SCANS = _MOST_SCANNED_MEGAPIXELS = 10**12"),
    M(41, "pixels as text are read however many", "data/decode.py", "row_41_bombs", "_LARGEST_TEXT = 2**40"),
    M(42, "anything is opened", "data/decode.py", "row_42", "if False:", "if not stat.S_ISREG(found.st_mode):"),
    M(42, "files of any size are read", "data/decode.py", "row_42_what_is_no_file", "if False:", "if found.st_size > most:"),
    M(42, "links are followed without end", "data/layout.py", "row_42_links", "_MOST_WAYS = 10**12"),
    M(52, "a table has any columns", "data/listing.py", "row_52_tables", "_MOST_COLUMNS = 10**12"),
    M(52, "lines have no end", "data/listing.py", "row_52_tables", "_LONGEST_LINE = 2**40"),
    M(52, "a class is called by any text", "data/columns.py", "row_52_tables", "_LONGEST_NAME = 10**12"),
    M(52, "any number of imagined classes", "config_sections.py", "row_52_absurd_numbers", "least=0)", "least=0, most=10**6)"),
    M(52, "numbers have no upper bounds", "config_values.py", "row_52_absurd_numbers", "(self.most, lambda n, bound: True)", "(self.most, lambda n, bound: n <= bound)"),
    M(43, "pickles may go on for ever", "weights/pickles.py", "row_43_pickles", "MAX_OPCODES = 10**12"),
    M(43, "JSON is made before it is counted", "weights/header.py", "row_43_headers or row_43_bombs", "def check_nodes(text):\n    pass"),
    M(43, "archives may unpack to anything", "weights/stored.py", "unpack or repeated", "def _check_unpacked(*a):\n    pass"),
    M(43, "any number of files is opened", "weights/stored.py", "row_43_an_index", "MAX_SHARDS = 10**9"),
    M(43, "shards are not added up", "weights/stored.py", "row_43_shards", "_MAX_EFFORT = 10**12"),
    M(43, "tensors may share their bytes", "weights/header.py", "row_43_tensors", "if False:", "if begin != end:"),
    M(43, "pipes and devices are opened", "plain.py", "row_43_what_stands", "if False:", "if not stat.S_ISREG(os.fstat(descriptor).st_mode):"),
    M(46, "a header's preprocessing is believed", "config.py", "row_46_a_field", "return parsed", "check_value(name, parsed, cls, line)\n    return parsed"),
    M(46, "a header's fields are believed", "weights/describe.py", "row_46_a_field", "def check_document(document):\n    pass"),
    M(46, "a configuration is believed", "weights/sidecar.py", "row_46_a_value_of_timm", "def _as_key(path, name, key, value):\n    return value"),
    M(46, "an argument is believed", "weights/sidecar.py", "row_46_an_argument", "def _as_key(path, name, key, value):\n    return value"),
    M(46, "preprocessing that is asked for is believed", "weights/asked.py", "row_46_preprocessing", "def check_bounds(section, values):\n    pass"),
    M(48, "an image is its size", "data/identity.py", "row_48", "def digest(blob):\n    return len(blob)"),
    M(49, "the cache is mapped", "data/cache.py", "row_49", """
def _mapped(self, positions):
    if not hasattr(self, "map"):
        self.map = np.memmap(self.folder / "pixels.u8", np.uint8, "r", shape=self.shape)
    return self.map[positions], np.ones(len(positions), bool)
Cached.read = _mapped
"""),
    M(49, "checksums are not compared", "data/cache.py", "row_49", "np.ones(len(positions), bool)", "checksums(pixels) == self._sums[positions]"),
    M(49, "a damaged cache stays", "data/cache.py", "row_49", "pass", "self.cached.discard()"),
    M(50, "the order of images is not in a cache's name", "data/cache.py", "row_50", "np.sort(split.digests(progress)).tobytes()", "split.digests(progress).tobytes()"),
    M(50, "how images are decoded is not in a cache's name", "data/cache.py", "row_50", "{view.size}|{config.max_megapixels}", "{view}|{config.max_megapixels}"),
    M(51, "a kill is not told of", "runs.py", "row_51_the_next", "def ended(folder):\n    return ''"),
    M(51, "a run that lives is called killed", "runs.py", "row_51_the_next", "def is_held(folder):\n    return False"),
    M(56, "a file that changed is believed", "weights/held.py", "row_56_between", "HeldFile.check_unchanged = lambda self: None"),
    M(56, "the path is opened again", "weights/checkpoint.py", "row_56_between or row_56_the_scores", "opened = None\n        if opened is None", "opened = reference.opened\n        if opened is None"),
    M(56, "files are mapped", "weights/held.py", "row_56_a_file", """
def _mapped(self, start, count, dtype):
    import numpy, torch
    kind = getattr(torch, dtype)
    raw = numpy.memmap(self.path, numpy.uint8, "c", start, (count * kind.itemsize,))
    return torch.frombuffer(raw.data, dtype=kind)
HeldFile.numbers = _mapped
"""),
    M(57, "a cache of another format is read", "data/cache.py", "row_57_a_cache", "if tuple(described[\"shape\"]) != shape:", 'if (described["format"], tuple(described["shape"])) != (FORMAT, shape):'),
    M(57, "remembered digests are believed", "data/identity.py", "row_57_remembered", "whole = True", "whole = table[0].tolist() == [_MEMORY, int(table[1:].sum())]"),
    M(57, "a run's version is not told", "train/runfolder.py", "row_57_a_run", "def _versions(stored):\n    return ''"),
    M(57, "a step of another format is read", "train/state.py", "row_57_a_saved", "if False:", "if written != FORMAT:"),
    M(59, "what trained is forgotten", "data/identity.py", "row_59", "Record.contains = lambda self, digests: np.zeros(len(digests), bool)"),
    M(40, "any seal fits", "data/origin.py", "row_40_what or row_40_seals", "if False", "if id_ != EMBEDDED and not (isinstance(sealed, list) and own & {seal for seal in sealed if isinstance(seal, str)})"),
    M(40, "no run is this machine's own", "data/origin.py", "row_40_this", "def _keys():\n    return []"),
    M(39, "libraries count and report", "hub.py", "row_39_nothing", "pass", "os.environ.setdefault(_name, _value)"),
    M(42, "folders that cannot be looked into are passed over", "data/layout.py", "row_42_a_folder", "continue", "unlisted.append((below, error.strerror or str(error)))"),
    M(44, "a terminal gets names as they are", "text.py", "row_44_nothing_moves", "def visible(text):\n    return text"),
    M(44, "JSON is not escaped", "text.py", "row_44_nothing_moves or row_44_json", "def as_json(tree, indent=None):\n    return json.dumps(tree, indent=indent, ensure_ascii=False)"),
    M(44, "a cell may be a formula", "text.py", "row_44_tables", "def cell(text):\n    return visible(text)"),
    M(44, "a cell may be lines", "text.py", "row_44_tables", "def cell(text):\n    return unicode(text)"),
    M(44, "a card may hold markup", "text.py", "row_44_a_model_card", "def markdown(text):\n    return visible(text)"),
    M(44, "a dollar is mathematics", "plots.py", "row_44_pictures", "pass", "text.set_parse_math(False)"),
    M(45, "streams stay strict", "cli/console.py", "row_45_a_terminal", "def take_any_text():\n    pass"),
    M(45, "a result's letters stay strict", "cli/console.py", "row_45_a_terminal", "content.encode(stream.encoding)", 'content.encode(stream.encoding, "backslashreplace")'),
    M(45, "JSON for ASCII is not ASCII", "cli/console.py", "row_45_a_terminal", "def _is_unicode(stream):\n    return True"),
    M(45, "bytes of a letter stay apart", "text.py", "row_45_a_run", "def _joined(text):\n    return text"),
    M(45, "a home must be writable", "files.py", "row_45_a_home", "def is_writable(folder):\n    return True"),
    M(53, "places are not looked at", "files.py", "row_53_a_place or row_53_the_root", "def check_out(path, force, folder=False):\n    pass"),
    M(53, "a long name of data names a run", "train/runfolder.py", "row_53_a_long", "", "[:100]"),
    M(53, "VIT_CACHE is not looked at", "files.py", "row_53_a_cache", "def _usable_cache(path):\n    return path"),
    M(53, "nobody asks for the working directory", "cli/app.py", "row_53_a_working", "pass", "os.getcwd()"),
    M(54, "a name that cannot be ends it all", "evaluate/named.py", "row_54_one", "except ZeroDivisionError as error:\n        return [NoImage(name, error.strerror or str(error))]", "except OSError as error:\n        return [NoImage(name, error.strerror or str(error))]"),
    M(54, "names on stdin are UTF-8", "evaluate/named.py", "row_54_names", "line.rstrip(b\"\\r\\n\").decode()", "os.fsdecode(line.rstrip(b\"\\r\\n\"))"),
    M(54, "bytes of an image are names", "evaluate/named.py", "row_54_bytes", "if False:", 'if b"\\0" in stream.peek():'),
    M(55, "what differs is not said", "train/parts.py", "row_55", "if False:", "if changed:"),
    M(58, "budgets keep to the machine's clock", "train/session.py", "row_58", "return self.at.used + time.monotonic() - self.plan.request.started + time.time() - time.time()", "return self.at.used + time.monotonic() - self.plan.request.started"),
    M(60, "what a full disk took is left", "cli/console.py", "row_60_lines", "pass", "os.ftruncate(1, before)"),
    M(60, "a write that took a part is taken for a whole one", "cli/console.py", "row_60_lines", "stream.buffer.write(left); left = left[:0]", "left = left[stream.buffer.write(left) :]"),
    M(60, "what failed is left beside its place", "files.py", "row_60_nothing", "def _remove(path):\n    pass"),
    M(60, "files are written in place", "files.py", "row_60_what_was", "def write_file(path, write, size=0):\n    with disk_errors(path, size):\n        write(path)\n        fsync_path(path)"),
]  # fmt: skip


def changed(text: str, mutation: Mutation) -> str:
    """The mutated source."""
    if not mutation.old:
        return text + "\n" + mutation.new + "\n"
    count = text.count(mutation.old)
    if count != 1:
        raise SystemExit(f"row {mutation.row}, {mutation.what}: {mutation.file} has {mutation.old!r} {count} times")
    return text.replace(mutation.old, mutation.new)


def modules(row: int) -> list[str]:
    """The files of tests that have tests of a row: most are beside this one, some with what they test."""
    found = [
        str(file)
        for file in sorted(TESTS.rglob("test_*.py"))
        if f"def test_row_{row:02}_" in file.read_text(encoding="utf-8")
    ]
    if not found:
        raise SystemExit(f"row {row} has no tests")
    return found


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests pass on the mutated package."""
    copy = folder / "vitcli"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / mutation.file
    file.write_text(changed(file.read_text(encoding="utf-8"), mutation), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *modules(mutation.row),
        "-k",
        mutation.test,
    ]
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "VIT_TEST_PATIENCE": "40"}
    done = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"row {mutation.row}, {mutation.what}: no tests were run\n{done.stdout[-2000:]}")
    return done.returncode == 0


def main() -> None:
    rows = {int(text) for text in sys.argv[1:]}
    chosen = [m for m in MUTATIONS if not rows or m.row in rows]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        for mutation in chosen:
            alive = survives(mutation, Path(folder))
            survivors += alive
            print(f"| {mutation.row} | {mutation.what} | {'PASSED ALL THE SAME' if alive else 'failed'} |", flush=True)
    print(f"{len(chosen)} mutations, {survivors} survivors")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
