"""A result's bytes become tensors: bounded before they are inflated, and nothing in them is run.

A result is torch.save's archive inside a zstd frame. What may stand in it is less than torch would read, even with
weights_only: plain values, and dense tensors on the CPU.
"""

from __future__ import annotations

import io
import pickletools
import zipfile

import torch
import zstandard

from gating.errors import cause
from gating.remote.wire import Lost

OVERHEAD = 1_000_000  # bytes of an archive beside its tensors
WINDOW = 2**27  # bytes that a zstd frame may ask for
PICKLE = 1_000_000  # bytes of the part of an archive that says what its tensors are
RECORDS = 200  # of an archive: a trace saves some twenty tensors
NAMED = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict")
REFUSED = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD", "BYTEARRAY8")


def unpack(content: bytes, size: int) -> dict[str, object]:
    """What a trace saved, from a downloaded result of tensors of at most `size` bytes. Raises Lost where the bytes are
    damaged, are more, or hold anything else."""
    try:
        plain = _inflated(content, size + OVERHEAD)
        values = torch.load(_rebuilt(plain), map_location="cpu", weights_only=True)
    except Lost:
        raise
    except Exception as e:  # zstandard's, zipfile's, torch's and pickle's own types
        raise Lost(f"the result cannot be read ({cause(e)})") from e
    if not isinstance(values, dict):
        raise Lost("the result cannot be read (it is no mapping)")
    return values


def _inflated(content: bytes, limit: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(content) as reader:
        plain = bytearray()
        while piece := reader.read(2**20):
            plain += piece
            if len(plain) > limit:
                raise Lost(f"the result inflates to more than the {limit:,} bytes that were asked for")
    return bytes(plain)


def _rebuilt(plain: bytes) -> io.BytesIO:
    """The archive again, of the records that were looked at here: torch's own reader might see others in it."""
    if not plain.startswith(b"PK"):
        raise Lost("the result cannot be read (it is not an archive of torch.save)")
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as given, zipfile.ZipFile(out, "w") as made:
        records = given.infolist()
        names = {r.filename.lower() for r in records}
        inflated = any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records)
        if inflated or len(names) < len(records) or len(records) > RECORDS:
            raise Lost("the result cannot be read (its records are compressed, too many, or there twice)")
        if sum(r.file_size for r in records) > len(plain):
            raise Lost("the result cannot be read (its records overlap)")
        for record in records:
            content = given.read(record)
            if record.filename.endswith("data.pkl"):
                _check_pickle(content)
            made.writestr(record.filename, content)
    out.seek(0)
    return out


def _check_pickle(content: bytes) -> None:
    """Raises Lost where it names anything but dense tensors and their numbers."""
    if len(content) > PICKLE:
        raise Lost("the result cannot be read (it holds too many values)")
    for code, argument, _ in pickletools.genops(content):
        known = argument in NAMED or (str(argument).startswith("torch ") and str(argument).endswith("Storage"))
        if code.name in REFUSED or (code.name == "GLOBAL" and not known) or (code.name == "PROTO" and argument != 2):
            raise Lost("the result cannot be read (it holds more than tensors and plain values)")
