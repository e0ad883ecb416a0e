"""Which answers a person reads: drawn by chance, as many of each condition and of each kind of prompt."""

from __future__ import annotations

import numpy as np

NOT_DRAWN = -1


def draw(drawable: np.ndarray, harmful: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each answer in a sample of n (int32, -1 where not drawn) and its probability to be drawn (NaN where
    its condition was not to be), both [condition, prompt].

    drawable: which answers there are to draw from; harmful: [prompt]. The sample goes in rounds: one answer of every
    condition and kind of prompt, in an order of chance, then another of each. So every beginning of it is balanced and
    is itself such a sample, and a larger n goes on where a smaller one ended.
    """
    rng = np.random.default_rng(seed)
    key, second = rng.random(drawable.shape), rng.random(drawable.shape)
    stratum = strata(drawable, harmful)
    turn = np.zeros(drawable.shape, dtype="int64")  # of an answer within its stratum
    for s in np.unique(stratum[drawable]):
        own = drawable & (stratum == s)
        turn[own] = np.argsort(np.argsort(key[own]))
    at = np.flatnonzero(drawable)
    at = at[np.lexsort((second.ravel()[at], turn.ravel()[at]))][:n]
    order = np.full(drawable.size, NOT_DRAWN, dtype="int32")
    order[at] = np.arange(at.size)
    places = order.reshape(drawable.shape)
    return places, shares(places != NOT_DRAWN, drawable, harmful)


def shares(drawn: np.ndarray, drawable: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """The share of each answer's condition and kind of prompt that was drawn [condition, prompt]; NaN where an
    answer was not to be drawn."""
    stratum = strata(drawable, harmful)
    had, all_of = (np.bincount(stratum[which], minlength=stratum.max() + 1) for which in (drawn, drawable))
    with np.errstate(invalid="ignore"):
        share = had[stratum] / all_of[stratum]
    return np.where(drawable, share, np.nan)


def strata(drawable: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """A number for each condition and kind of prompt, [condition, prompt]."""
    return np.broadcast_to(2 * np.arange(len(drawable))[:, None] + harmful.astype("int64"), drawable.shape)
