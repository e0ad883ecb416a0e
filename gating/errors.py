"""The one error that a user can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class GatingError(Exception):
    """Bad input: names the key or file, its value, what is allowed and the remedy, in one paragraph.

    The command line prints it without a traceback and exits with code 2.
    """


def choices(allowed: Iterable[object], given: object | None = None) -> str:
    """`"a, b or c"`, led by the closest match to `given` where there is one ("did you mean b? ...")."""
    names = [str(a) for a in allowed]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}" if names else "nothing"
    close = difflib.get_close_matches(str(given), names, n=1) if given is not None else []
    return f"{listed} (did you mean {close[0]}?)" if close else listed


class TooLarge(GatingError):
    """A batch that the model's machine has no room or time for: half of it may go through."""


def cause(error: BaseException) -> str:
    """`"TypeName: first line"` of another library's error, to stand inside one of ours; of the system's, its reason
    alone: we name the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else 'no message'}"


@contextmanager
def naming(place: object) -> Iterator[None]:
    """The body's OSErrors that name no file (a full disk's) name `place`."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(place)
        raise
