"""NDIF's API with its key checks on: the same app on the same Redis, its key table a dictionary instead of
PostgreSQL."""

import uuid

from ndif.common.providers.postgres import PostgresProvider
from ndif.services.api.app import app  # noqa: F401 - served by uvicorn

KEY = uuid.UUID("11111111-1111-4111-8111-111111111111")


async def fetch(query, key):
    return [{"user_id": "u1", "email": "tester@example.org", "user_tag": "trusted"}] if key == KEY else []


PostgresProvider.enabled = staticmethod(lambda: True)
PostgresProvider.fetch = staticmethod(fetch)
