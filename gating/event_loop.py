"""An event loop in a process that has nnsight in it."""

from __future__ import annotations

import functools
import importlib
import sys


@functools.cache
def ready() -> None:
    """Import what anyio, under clients and servers, needs to connect, and leaves until then. nnsight, once imported,
    has put `save` on every object of the process, and anyio's classes take that for an attribute of their own that
    lacks a type; so it is taken off while they are made."""
    mounted = getattr(object, "save", None) if "nnsight" in sys.modules else None
    if mounted is None:
        importlib.import_module("anyio._backends._asyncio")
        return
    from nnsight._c import mount, unmount

    unmount("save")
    try:
        importlib.import_module("anyio._backends._asyncio")
    finally:
        mount(mounted, "save")
