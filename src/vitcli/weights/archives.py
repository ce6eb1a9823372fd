"""zip archives whose directory is looked at before it is believed, and the bytes of their entries."""

from __future__ import annotations

import copy
import struct
import zipfile
import zlib
from typing import BinaryIO

from vitcli.weights.held import HeldFile

MAX_ENTRIES = 20_000
"""Arrays and other files in one archive; a checkpoint with its optimizer has a few thousand."""
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_PART = 1 << 24  # bytes that are summed at once
_SHORTEST = 46  # bytes of an entry of the directory


def is_archive(file: HeldFile) -> bool:
    """Whether a file is, or says that it is, a zip archive."""
    try:
        return zipfile.is_zipfile(file.stream)
    except zipfile.BadZipFile:  # it says that it spans several disks
        return True


def open_archive(file: HeldFile) -> zipfile.ZipFile:
    """An archive of at most MAX_ENTRIES. Raises ValueError before a directory of millions is read, and what zipfile does."""
    size = _directory_bytes(file.stream)
    if size > MAX_ENTRIES * (_SHORTEST + 300):
        raise ValueError(f"a directory of {size:,} bytes, over {MAX_ENTRIES:,} entries")
    archive = zipfile.ZipFile(file.stream)
    if len(archive.infolist()) > MAX_ENTRIES:
        archive.close()
        raise ValueError(f"more than {MAX_ENTRIES:,} entries")
    return archive


def _directory_bytes(file: BinaryIO) -> int:
    """The length of the directory, as the end of the file says (APPNOTE.TXT 4.3.14 to 4.3.16)."""
    whole = file.seek(0, 2)
    file.seek(max(0, whole - (1 << 16) - _END.size))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END.size:
        raise ValueError("no end of an archive")
    size = int(_END.unpack_from(tail, at)[5])
    long_at = tail.rfind(b"PK\6\6", 0, at)
    if size == 0xFFFFFFFF and long_at >= 0 and len(tail) >= long_at + _END_64.size:
        size = int(_END_64.unpack_from(tail, long_at)[8])
    return size


def read_entry(archive: zipfile.ZipFile, entry: str, most: int) -> bytes:
    """An entry's bytes. Raises ValueError for more than `most`, also where the directory says fewer."""
    info = copy.copy(archive.getinfo(entry))
    if not info.CRC:
        del info.CRC  # not written, and then zipfile does not ask for it
    if info.file_size > most:
        raise ValueError(f"{entry} unpacks to {info.file_size:,} bytes, over {most:,}")
    with archive.open(info) as file:
        data = file.read(most + 1)
    if len(data) != info.file_size:
        raise ValueError(f"{entry} has {len(data):,} bytes, not {info.file_size:,}")
    return data


def stored_at(archive: zipfile.ZipFile, entry: str, file: HeldFile) -> int | None:
    """Where in the file the bytes of an entry begin; None where they are compressed. Raises ValueError."""
    info = archive.getinfo(entry)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    head = file.read(info.header_offset, _LOCAL.size)
    if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
        raise ValueError(f"{entry} does not lie where the directory says")
    *_, name, extra = _LOCAL.unpack(head)
    start: int = info.header_offset + _LOCAL.size + name + extra
    if info.compress_size != info.file_size or start + info.file_size > file.size:
        raise ValueError(f"{entry} is cut off")
    return start


def check_sum(archive: zipfile.ZipFile, entry: str, file: HeldFile, start: int) -> None:
    """Raises ValueError where the bytes of an entry have not the sum that was written. torch.save can leave it out, which is a 0."""
    info, found = archive.getinfo(entry), 0
    for place in range(start, start + info.file_size, _PART) if info.CRC else ():
        found = zlib.crc32(file.read(place, min(_PART, start + info.file_size - place)), found)
    if found != info.CRC:
        raise ValueError(f"{entry} does not have the checksum it was written with")
