"""The run's zarr store: its schema, one writer, readers, joins. Only this room knows zarr."""

from gating.store import again
from gating.store.files import waits
from gating.store.joins import find_runs, open_runs
from gating.store.provenance import git_revision, now, versions
from gating.store.reading import has_group, locate, open_run, problems, read_attrs, read_group
from gating.store.schema import LABEL_ATTRS, SCHEMA_VERSION, STORE, TEXT, empty_outcomes
from gating.store.writing import (
    LOCK,
    add_group,
    copy_groups,
    create,
    create_group,
    finish,
    repeated,
    set_attrs,
    write_batch,
    write_rows,
    writer,
)

__all__ = [
    "LABEL_ATTRS",
    "LOCK",
    "SCHEMA_VERSION",
    "STORE",
    "TEXT",
    "add_group",
    "again",
    "copy_groups",
    "create",
    "create_group",
    "empty_outcomes",
    "find_runs",
    "finish",
    "git_revision",
    "has_group",
    "locate",
    "now",
    "open_run",
    "open_runs",
    "problems",
    "read_attrs",
    "read_group",
    "repeated",
    "set_attrs",
    "versions",
    "waits",
    "write_batch",
    "write_rows",
    "writer",
]
