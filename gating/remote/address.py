"""Where an NDIF server is and which key opens it: nnsight's own settings, never kept by us."""

from __future__ import annotations

from gating import addresses
from gating.errors import GatingError


def address(host: str | None) -> str:
    """The server's address: as given, else nnsight's (NDIF_HOST, its config file, https://api.ndif.us). Raises
    GatingError where it is none, or holds a password."""
    from nnsight.schema.config import CONFIG  # nnsight is slow to import, and only a remote run needs it

    if host is not None:
        return addresses.checked(host, "backend.host")
    return addresses.checked(CONFIG.API.HOST, "NDIF_HOST (or HOST in nnsight's configuration)")


def key() -> str:
    """The API key that nnsight is configured with (NDIF_API_KEY, or its own config file). It is never kept by us.
    Raises GatingError where it cannot be one."""
    from nnsight.schema.config import CONFIG

    given = CONFIG.API.APIKEY or ""
    if not given.isascii() or not given.isprintable() or given != given.strip() or len(given) > 1000:
        raise GatingError(
            "NDIF_API_KEY holds no well-formed key: it has a space, a line break or another strange sign."
        )
    return given
