"""Where an NDIF server is and which key opens it: nnsight's own settings, never kept by us."""

from __future__ import annotations

from gating import foreign
from gating.errors import GatingError


def address(host: str | None) -> str:
    """The server's address: as given, else nnsight's (NDIF_HOST, its config file, https://api.ndif.us)."""
    from nnsight.schema.config import CONFIG  # nnsight is slow to import, and only a remote run needs it

    url = (host or CONFIG.API.HOST).rstrip("/")
    try:
        foreign.http_address(url, "backend.host")
    except GatingError as e:
        raise GatingError(f"{e} Give http://HOST:PORT or https://HOST, or null for NDIF_HOST.") from None
    return url


def key() -> str:
    """The API key that nnsight is configured with (NDIF_API_KEY, or its own config file). It is never kept by us."""
    from nnsight.schema.config import CONFIG

    return CONFIG.API.APIKEY or ""
