"""Chunks of a finished group joined into few files: a store of a million rows has hundreds, not tens of thousands."""

from __future__ import annotations

import json
import math

import zarr

from gating.store.files import Files

CHUNK = 32 * 2**20  # bytes of a joined chunk, before compression: what is in memory at once
TEXT_BYTES = 512  # taken for a text, whose length varies


def join(old: Files, files: Files, group: str = "") -> None:
    """Write every array below a group that was filled batch by batch anew, in the fewest chunks of CHUNK bytes.

    old: the store's files as they stand; files: the same, being written. Values and codecs stay as they are.
    """
    for name, array in zarr.open_group(old, path=group, mode="r", use_consolidated=False).members(max_depth=None):
        if isinstance(array, zarr.Array):
            _join(array, old, files, f"{group}/{name}" if group else name)


def _join(array: zarr.Array, old: Files, files: Files, path: str) -> None:
    """One array, where it is cut along one dimension."""
    cut = [axis for axis, (size, chunk) in enumerate(zip(array.shape, array.chunks, strict=True)) if chunk < size]
    if len(cut) != 1:
        return
    axis, bytes_each = cut[0], TEXT_BYTES if array.dtype.kind in "OT" else array.dtype.itemsize
    weight = math.prod(array.chunks) * bytes_each
    length = min(array.shape[axis], array.chunks[axis] * max(1, CHUNK // weight))
    if length == array.chunks[axis]:
        return
    about = json.loads(old.read(f"{path}/zarr.json"))
    about["chunk_grid"]["configuration"]["chunk_shape"][axis] = length
    files.drop(path)
    files.write(f"{path}/zarr.json", json.dumps(about).encode())
    joined = zarr.open_array(files, path=path, mode="r+")
    for start in range(0, array.shape[axis], length):
        part = tuple(slice(start, start + length) if a == axis else slice(None) for a in range(array.ndim))
        joined[part] = array[part]
