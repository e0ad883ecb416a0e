"""`python -m tests.same_arrays OLD NEW`: are two stores' arrays equal, value by value? Made for changes that move code.

Arrays are matched by path; RENAMED maps what an earlier schema called otherwise. Prints what stands in one store
alone, and exits with 1 where an array of the old one is not in the new one, or differs in dtype, shape or any value
(NaN equals NaN).
"""

from __future__ import annotations

import sys

import numpy as np
import zarr

RENAMED = {"readouts/resid_norm": "readouts/residual_norm"}  # schema 2 -> 3


def arrays(path: str) -> dict[str, np.ndarray]:
    """Every array of a store by its path, in the names of today's schema."""
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    return {RENAMED.get(name, name): np.asarray(item[...]) for name, item in members if isinstance(item, zarr.Array)}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def apart(a: np.ndarray, b: np.ndarray) -> str:
    """How far apart two arrays of numbers are, of the largest value in them."""
    if a.shape != b.shape or a.dtype.kind not in "fiub" or b.dtype.kind not in "fiub":
        return ""
    a, b = a.astype("float64"), b.astype("float64")
    gap, largest = np.nanmax(np.abs(a - b), initial=0), np.nanmax(np.abs(a), initial=0)
    missing = " and other values are missing" if (np.isnan(a) != np.isnan(b)).any() else ""
    return f", by {gap / max(largest, 1e-300):.1e} of its largest value at most{missing}"


def main() -> None:
    old, new = (arrays(path) for path in sys.argv[1:3])
    for name in sorted(set(old) ^ set(new)):
        print(f"only in the {'old' if name in old else 'new'} store: {name}")
    both = sorted(set(old) & set(new))
    different = [name for name in both if not same(old[name], new[name])]
    print(f"{len(both)} arrays stand in both stores, {len(both) - len(different)} are equal value by value")
    for name in different:
        print(f"different: {name}{apart(old[name], new[name])}")
    sys.exit(1 if different or set(old) - set(new) else 0)


if __name__ == "__main__":
    main()
