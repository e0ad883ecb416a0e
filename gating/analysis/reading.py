"""What every analysis reads of a run's tree: its groups, prompts, conditions, the blocks they write, their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from gating.errors import GatingError


def read_group(run: xr.DataTree, name: str) -> xr.Dataset:
    """A group of a run (prompts, conditions, outcomes, ...), loaded into memory."""
    return run[f"/{name}"].to_dataset().load()


def check_single(run: xr.DataTree) -> None:
    """Raises GatingError for a joined multirun, where an analysis is of one run."""
    if axes := list(run.attrs.get("axes", [])):
        raise GatingError(
            f"this is a multirun joined over {', '.join(axes)}; open its runs one by one for this analysis."
        )


def harm_judges(run: xr.DataTree) -> list[str]:
    """The judges under /judgements that score harm (`harm_scores`) and so give no labels."""
    group = run.children.get("judgements")
    return sorted(n for n, g in group.children.items() if "harm" in g.data_vars) if group is not None else []


def whole_directions(run: xr.DataTree) -> xr.Dataset:
    """/directions without the variants of directions (bootstraps, halves), loaded."""
    ds = read_group(run, "directions")
    whole = ds["variant"].values == "" if "variant" in ds else np.ones(ds.sizes["direction"], dtype=bool)
    return ds.isel(direction=whole, other=whole)


def held_readouts(run: xr.DataTree) -> xr.Dataset:
    """The readouts that the run kept, not loaded yet (those of every token may be gigabytes); empty where there are
    none."""
    return run["/readouts"].to_dataset() if "readouts" in run.children else xr.Dataset()


def asked(run: xr.DataTree, harmful: bool | None) -> np.ndarray:
    """Which prompts are harmful (True) or harmless (False); None is all of them: boolean [prompt]."""
    flags = read_group(run, "prompts")["harmful"].values
    return np.ones(flags.size, dtype=bool) if harmful is None else flags == harmful


def asked_both(run: xr.DataTree) -> bool:
    """Whether the run asked harmful and harmless prompts."""
    return bool(asked(run, True).any() and asked(run, False).any())


def conditions_of_kind(run: xr.DataTree, kinds: Sequence[str]) -> list[str]:
    """The conditions of these kinds, in order."""
    conditions = read_group(run, "conditions")
    return conditions["condition"].values[np.isin(conditions["kind"].values, kinds)].tolist()


def shown_names(run: xr.DataTree) -> dict[str, str]:
    """Each condition's name as tables and pictures show it: after the paper's label (`C1 mp_only`) where it has one."""
    conditions = read_group(run, "conditions")
    names = conditions["condition"].values.tolist()
    labels = conditions["paper"].values.tolist() if "paper" in conditions else [""] * len(names)
    return {name: f"{label} {name}".strip() for name, label in zip(names, labels, strict=True)}


def written_blocks(conditions: xr.Dataset) -> np.ndarray:
    """The decoder blocks that any of these conditions' interventions write, ascending. conditions: of /conditions."""
    written = conditions["iv_written"]
    return np.flatnonzero(written.any([d for d in written.dims if d != "layer"]).values)


def strengths(run: xr.DataTree, harmful: bool | None) -> xr.Dataset:
    """How hard each condition pushes in units that compare, means over the prompts asked for: `change`, |added| / |h|
    at the last prompt token (the largest over blocks), `kl`, first-token KL to the baseline in nats, and `removed`,
    the root mean square of what ablations take out over prompt tokens and their blocks, in units of the residual (NaN
    where there is none, or where a block of theirs is written otherwise too); empty where not kept."""
    readouts = held_readouts(run)
    if not {"relative_change", "kl", "change_norm"} <= set(readouts.data_vars):
        return xr.Dataset()
    kept = readouts[["relative_change", "kl", "change_norm"]].isel(prompt=asked(run, harmful)).load()
    return xr.Dataset(
        {
            "change": kept["relative_change"].max("layer").mean("prompt"),
            "kl": kept["kl"].mean("prompt"),
            "removed": _removed(read_group(run, "conditions"), kept["change_norm"]),
        }
    )


def _removed(conditions: xr.Dataset, change_norm: xr.DataArray) -> xr.DataArray:
    """sqrt of the mean square of `change_norm` over prompts, summed over the blocks that ablations alone write."""
    written, ablates = conditions["iv_written"], conditions["iv_op"] == "ablate"
    taken = (written & ablates).any("intervention")
    other = (written & ~ablates).any("intervention")
    squared = (change_norm**2).where(taken).sum("layer").mean("prompt")
    return xr.DataArray(np.sqrt(squared)).where(taken.any("layer") & ~(taken & other).any("layer"))


def undisturbed(run: xr.DataTree) -> bool | None:
    """The prompts that a condition's KL is read on: harmless ones, or all (None) where none was asked."""
    return None if asked(run, True).all() else False
