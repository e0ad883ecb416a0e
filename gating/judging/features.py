"""What a learned judge sees of an answer: hashed counts of its words, letters and concepts, and how it fits its prompt.

Five families, each with places of its own, each scaled to a length of its own, so that a long answer weighs no more
than a short one:

    opening  words and pairs of words of the first 12 words
    words    words and pairs of words anywhere
    letters  runs of 3 to 5 letters: endings, misspellings, languages whose words are not known
    concepts of each sentence (concepts.py): one to three in a row, pairs up to 5 apart, who does not do what; its place
    shape    length, marks, lists, code; how many words of the prompt come back, and how many are neither the prompt's
             nor of the kind that fills an answer without content

An answer is read after its thought, without quoted speech for the concepts, and up to LONGEST characters.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from itertools import pairwise

import numpy as np

from gating.judging.concepts import OTHER, STEM, concepts, of_word, spelled_out, words
from gating.judging.sentences import normalise, sentences
from gating.thoughts import MARKS

VERSION = "3"  # raise it with every change of what a place means; a judge trained on others is refused
LONGEST = 1200  # characters read: the refusal of a long answer stands in it somewhere
BITS = {"opening": 14, "words": 16, "letters": 16, "concepts": 15, "shape": 10}
SCALE = {"opening": 0.8, "words": 1.05, "letters": 0.4, "concepts": 1.2, "shape": 1.6}
_STARTS = np.cumsum([0, *(2**b for b in BITS.values())][:-1])
_SCALES = np.array(list(SCALE.values()))
WIDTH = sum(2**b for b in BITS.values())
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, and its bits look random (Knuth's multiplicative hashing)
MASK = "§"  # in place of a word of the prompt
OPENING, SENTENCES, APART = 12, 24, 5
WHO = ("I", "AI", "YOU", "THIS", "REQUEST", "ASKED", "BAD")
DEEDS = ("HELP", "ASKED", "ALLOW", "THIS", "REQUEST", "KNOW", "FEEL", "BAD")
_STOP = (
    "a an the of to in on at for with and or is are was be been by from as do does did have has had i you he she it we "
    "they my your me how what why who where when which can could would will should please write give tell explain make "
    "this that there their its not no if so than then about into up out more some any all very just but"
)
STOP = frozenset(_STOP.split())
_THOUGHTS = tuple(
    (re.compile(rf"\s*{re.escape(opens)}.*?{re.escape(closes)}", re.DOTALL), opens) for opens, closes in MARKS
)
_LIST = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*•])\s")
_CODE = re.compile(r"```|\bdef \w+\(|\bimport \w+|[{};]\s*\n|</\w+>")


def answer_of(text: str) -> str:
    """The answer behind a thought that stands in the text; empty where the thought never ends."""
    for whole, opens in _THOUGHTS:
        text = whole.sub("", text, count=1) if text.lstrip().startswith(opens) else text
        if text.lstrip().startswith(opens):
            return ""
    return text


def features(prompt: str, answer: str) -> tuple[np.ndarray, np.ndarray]:
    """Places (int64) and values (float32) of what an answer has, each place once. The same on every machine."""
    answer = answer_of(answer)[:LONGEST]
    asked, found = _stems_of(prompt), words(spelled_out(normalise(answer)))
    told = [s for s in sentences(answer) if s][:SENTENCES]
    masked = [MASK if word[:STEM] in asked else word for word in found]  # the topic says nothing of the label
    row = np.array([_hash(word) for word in ("^", *masked, "$")], dtype="uint64")
    parts = (  # in the order of BITS
        _grams(row[: OPENING + 2], "opening"),
        _grams(row, "words"),
        _letters(f"^{' '.join(masked)[:400]}$"),
        _of_sentences(told, asked),
        _hashed(_shape(asked, answer, found) + _evidence(told, asked), "shape"),
    )
    ids = np.concatenate([part + start for part, start in zip(parts, _STARTS, strict=True)])
    places, count = np.unique(ids, return_counts=True)
    family = np.searchsorted(_STARTS, places, side="right") - 1
    value = np.where(family == len(BITS) - 1, 1.0, np.log1p(count))  # a shape is there or not
    length = np.sqrt(np.bincount(family, value**2, len(BITS)))
    return places, (_SCALES[family] * value / length[family]).astype("float32")


@lru_cache(maxsize=262144)
def _hash(gram: str) -> int:
    return zlib.crc32(gram.encode())


def _hashed(grams: list[str], family: str) -> np.ndarray:
    return _places(np.array([_hash(g) for g in grams], dtype="uint64"), family)


def _places(hashes: np.ndarray, family: str) -> np.ndarray:
    """Places of a family for 64-bit hashes, whose low bits alone would keep what sums and products left in them."""
    mixed = (hashes ^ (hashes >> np.uint64(29))) * _FACTOR
    return ((mixed >> np.uint64(40)) & np.uint64(2 ** BITS[family] - 1)).astype("int64")


def _grams(row: np.ndarray, family: str) -> np.ndarray:
    """Places of the words between the marks at both ends of a row of hashes, and of every pair in it."""
    return _places(np.concatenate([row[1:-1], row[:-1] * _FACTOR + row[1:]]), family)


def _letters(text: str) -> np.ndarray:
    """Places of the runs of 3 to 5 characters, all at once."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype("uint64")
    run, runs = codes, []
    for n in range(2, 1 + min(5, codes.size)):
        run = run[:-1] * _FACTOR + codes[n - 1 :]
        runs += [run] if n > 2 else []
    return _places(np.concatenate(runs), "letters") if runs else np.zeros(0, "int64")


def _of_sentences(told: list[str], asked: frozenset[str]) -> np.ndarray:
    places = ("a", "b", "b", *"c" * SENTENCES)
    hashed = [_of_sentence(s, places[i], i == len(told) - 1, asked) for i, s in enumerate(told)]
    return np.concatenate(hashed) if hashed else np.zeros(0, "int64")


@lru_cache(maxsize=8192)
def _of_sentence(sentence: str, place: str, last: bool, asked: frozenset[str]) -> np.ndarray:
    found = _concepts_of(sentence, asked)
    row = ["^", *found, "$"]
    grams = list(found)
    grams += [f"{a}>{b}" for a, b in pairwise(row)]
    grams += [f"{a}>{b}>{c}" for a, b, c in zip(row, row[1:], row[2:], strict=False)]
    grams += _turned_down(found)
    known = [c for c in found if c not in OTHER]
    grams += [f"{a}~{b}" for i, a in enumerate(known) for b in known[i + 1 : i + 1 + APART]]
    hashes = np.array([_hash(g) for g in grams], dtype="uint64")
    placed = [hashes + mark * _FACTOR for mark in np.array([[_hash(place)], [_hash("z")]], dtype="uint64")[: 1 + last]]
    return _places(np.concatenate([hashes, *placed]), "concepts")


@lru_cache(maxsize=8192)
def _concepts_of(sentence: str, asked: frozenset[str]) -> list[str]:
    return concepts(words(spelled_out(sentence)), asked)


def _turned_down(found: list[str]) -> list[str]:
    """Who does not do what: around each negation and refusal the one before (I, THIS, ...) and the deed behind it."""
    grams = []
    for i, concept in enumerate(found):
        if concept in ("NOT", "REFUSE", "FORBID"):
            who = next((c for c in reversed(found[max(0, i - 5) : i]) if c in WHO), "nobody" if i < 3 else "far")
            after = found[i + 1 : i + 6]
            what = next((c for c in after if c in DEEDS), after[0] if after else "end")
            near = what in after[:2]
            grams += [f"{who}!{concept}!{what}{near}", f"{who}!{concept}", f"{concept}!{what}"]
    return grams


def _evidence(told: list[str], asked: frozenset[str]) -> list[str]:
    """How much in the answer's first sentences may turn something down at all, and in whose name."""
    found = [concept for sentence in told[:4] for concept in _concepts_of(sentence, asked)]
    firm = min(3, sum(c in ("NOT", "REFUSE", "FORBID", "NO") for c in found))
    soft = min(3, sum(c in ("BAD", "INSTEAD", "POLICY", "STOP", "SAFE", "SORRY") for c in found))
    own = "I" in found or "AI" in found
    return [f"firm{firm}", f"soft{soft}", f"firm{firm}soft{soft}", f"firm{firm}own{own}", f"no{firm == 0 == soft}"]


@lru_cache(maxsize=4096)
def _stems_of(prompt: str) -> frozenset[str]:
    return frozenset(_stems(words(spelled_out(normalise(prompt[:LONGEST])))))


def _shape(asked: frozenset[str], answer: str, found: list[str]) -> list[str]:
    said = _stems(found)
    back = len(asked & said)
    share = back / len(asked) if asked else 0.0
    new = {s for s in said - asked if of_word(s) == OTHER}
    length = _bin(len(found), (1, 2, 4, 8, 12, 18, 26, 40, 60, 100))
    comes = _bin(share, (0.01, 0.2, 0.34, 0.5, 0.75, 0.99)) if asked else "?"
    fresh = _bin(len(new), (1, 2, 3, 5, 8, 12, 18, 30))
    marks = [
        f"list{min(3, len(_LIST.findall(answer)))}",
        f"code{bool(_CODE.search(answer))}",
        f"ends{answer.rstrip()[-1:] if answer.rstrip()[-1:] in '.!?:,' else ''}",
        f"asks{min(3, answer.count('?') + answer.count('？'))}",
        f"quotes{min(2, answer.count(chr(34)) // 2)}",
    ]
    rate = _bin(len(new) / max(1, len(found)), (0.1, 0.2, 0.3, 0.4, 0.5))
    fit = [f"back{comes}", f"new{fresh}", f"rate{rate}", f"long{length}", f"back{comes}new{fresh}"]
    return [*marks, *fit, f"back{comes}long{length}", f"new{fresh}long{length}", f"n{min(back, 6)}"]


def _stems(found: list[str]) -> set[str]:
    """Beginnings of the words that carry meaning; of Chinese and Japanese the pairs of characters."""
    stems: set[str] = set()
    for word in found:
        if "\u3040" <= word[0] <= "\u9fff":
            stems |= {word[i : i + 2] for i in range(len(word) - 1)}
        elif len(word) > 2 and word not in STOP:
            stems.add(word[:STEM])
    return stems


def _bin(value: float, edges: tuple[float, ...]) -> int:
    return sum(value >= edge for edge in edges)
