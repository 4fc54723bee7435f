"""Held-out texts planted among training texts, verbatim and lightly edited: which are found, and what else is.

`python -m benchmarks.data_planted` prints, for support queries and for GSM8K's questions, a table of threshold by
kind of edit over 20 seeds; it takes about seven CPU-minutes. `rows` and `planted` make the data with its ground truth.
"""

import csv
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, get_args

import numpy as np

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.near_copy import NearIndex
from pipelines.dataset.normal import normalised

Domain = Literal["queries", "questions"]
SEEDS = 20
NUM_ROWS = 100_000
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)

_OPENINGS = (
    "how do i", "why can't i", "where would i", "is it possible to", "i was trying to", "my colleague asked me to",
    "before friday i have to", "what does it take to", "i forgot how to", "since the update i cannot",
    "who is allowed to", "do i have to pay to",
)  # fmt: skip
_ACTIONS = (
    "archive", "export", "rename", "schedule", "translate", "calibrate", "mute", "merge", "restore", "print", "pair",
    "reorder", "annotate", "encrypt", "lend", "refill", "photograph", "tune", "defrost", "subscribe to", "unpack",
    "label", "stream", "rotate", "measure", "compress", "borrow", "polish", "map", "weigh",
)  # fmt: skip
_QUALITIES = (
    "shared", "quarterly", "broken", "bluetooth", "vintage", "second", "wireless", "seasonal", "corrupted", "family",
    "portable", "frozen", "hidden", "northern", "leather", "digital", "handmade", "monthly", "rusty", "annotated",
)  # fmt: skip
_THINGS = (
    "calendar", "spreadsheet", "thermostat", "playlist", "telescope", "greenhouse", "bicycle", "newsletter",
    "keyboard", "aquarium", "wardrobe", "podcast", "printer", "harvest plan", "museum pass", "recipe book", "violin",
    "sensor log", "training diary", "lawn mower", "camera roll", "ferry booking", "crossword", "chess clock",
    "water filter", "garden hose", "tax folder", "poster", "map layer", "sleeping bag",
)  # fmt: skip
_CONTEXTS = (
    "while travelling in norway", "for the whole class", "with only one hand free", "without losing the comments",
    "on a tablet from 2015", "after the firmware changed", "in time for the picnic", "when the cellar is flooded",
    "for three of my cousins", "at the lake house", "under the new guidelines", "with the lid still closed",
    "during the night shift", "from the attic", "near the harbour", "instead of the old one",
    "as the manual suggests", "if nobody answers the door", "between two rehearsals", "in under ten minutes",
)  # fmt: skip

_SYNONYMS = {
    "card": "plastic", "account": "profile", "help": "assist", "money": "cash", "transfer": "payment",
    "need": "require", "want": "wish", "get": "receive", "new": "fresh", "find": "locate", "change": "modify",
    "why": "how come", "cost": "price", "fee": "charge", "problem": "issue", "many": "several", "total": "overall",
    "gave": "handed", "make": "create", "tell": "inform", "lost": "misplaced", "cancel": "stop", "long": "much time",
    "buy": "purchase", "every": "each", "day": "morning", "payment": "transaction", "number": "amount",
}  # fmt: skip
_ADDED = ("really", "just", "now", "today", "actually", "still", "also", "again")
_POLITE = ("Please, ", "Hi, ", "Hello, ", "Excuse me, ", "Hi there, ", "Please help: ")


@dataclass(frozen=True)
class Planted:
    """Training texts, held-out texts, and for the number of each planted training text its held-out text and edit."""

    train: list[str]
    heldout: list[str]
    truth: dict[int, tuple[int, str]]


def synthetic(seed: int) -> Iterator[str]:
    """Distinct plausible requests of about twelve words, 14 million of them, in a seeded order."""
    shape = (_OPENINGS, _ACTIONS, _QUALITIES, _THINGS, _CONTEXTS, range(100))
    size = int(np.prod([len(part) for part in shape]))
    # An odd prime that divides no length walks through all of them once.
    number, step = random.Random(seed).randrange(size), 7_368_787
    for _ in range(size):
        number = (number + step) % size
        at = [int(place) for place in np.unravel_index(number, [len(part) for part in shape])]
        opening, action, quality, thing, context = (part[place] for part, place in zip(shape[:5], at[:5], strict=True))
        yield f"{opening} {action} the {quality} {thing} no {at[5]} {context}?"


def real(domain: Domain) -> list[str]:
    """Training texts shipped with the project: CLINC150's, or GSM8K's questions.

    Without the intents that a bank answers: those queries really are near-copies of Banking77's.
    """
    if domain == "questions":
        return _questions("train")
    parts = json.loads((PROJECT / "data/clinc150/data_full.json").read_text(encoding="utf-8"))
    banking = set(compose([]).config.task.sources["other_domains"].exclude)
    return [query for part in parts.values() for query, intent in part if intent not in banking]


def rows(count: int, seed: int, domain: Domain = "queries") -> Iterator[str]:
    """Training texts that are distinct once normalised: the real ones, then synthetic ones."""

    def every() -> Iterator[str]:
        seen = set()
        for text in real(domain):
            if (key := normalised(text)) not in seen:
                seen.add(key)
                yield text
        yield from synthetic(seed)

    return islice(every(), count)


def heldout_texts(domain: Domain) -> list[str]:
    """Banking77's test queries, or GSM8K's test questions."""
    return _questions("test") if domain == "questions" else banking77("test")


def banking77(part: str) -> list[str]:
    with (PROJECT / f"data/banking77/{part}.csv").open(encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _questions(part: str) -> list[str]:
    lines = (PROJECT / f"data/gsm8k/{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _typo(text: str, random_: random.Random) -> str:
    at = random_.choice([at for at, letter in enumerate(text) if letter.isalpha()])
    return text[:at] + random_.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :]


def _swap(text: str, random_: random.Random) -> str:
    pairs = [at for at in range(len(text) - 1) if text[at : at + 2].isalpha() and text[at] != text[at + 1]]
    at = random_.choice(pairs)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _synonym(text: str, random_: random.Random) -> str:
    words = text.split()
    known = [at for at, word in enumerate(words) if word.lower().strip(".,?!") in _SYNONYMS]
    at = random_.choice(known or range(len(words)))
    words[at] = _SYNONYMS.get(words[at].lower().strip(".,?!"), random_.choice(list(_SYNONYMS)))
    return " ".join(words)


def _add(text: str, random_: random.Random) -> str:
    words = text.split()
    words.insert(random_.randrange(len(words) + 1), random_.choice(_ADDED))
    return " ".join(words)


def _drop(text: str, random_: random.Random) -> str:
    words = text.split()
    del words[random_.randrange(len(words))]
    return " ".join(words)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "case": lambda text, random_: random_.choice([text.upper(), text.lower(), text.title()]),
    "punctuation": lambda text, random_: text.rstrip(".?!") + random_.choice(["!!", "...", " ?", ""]),
    "typo": _typo,
    "swap": _swap,
    "synonym": _synonym,
    "add": _add,
    "drop": _drop,
    "polite": lambda text, random_: random_.choice(_POLITE) + text[0].lower() + text[1:],
}


def planted(count: int, seed: int, domain: Domain = "queries", num_heldout: int = 100) -> Planted:
    """`count` training texts of which 50 are held-out texts and 50 others lightly edited, kinds in turn."""
    random_ = random.Random(seed)
    heldout = random_.sample(heldout_texts(domain), num_heldout)
    taken = {normalised(text) for text in heldout}
    train = [text for text in rows(count + num_heldout, seed, domain) if normalised(text) not in taken][:count]
    places = random_.sample(range(count), 100)
    kinds = ["verbatim"] * 50 + [list(EDITS)[at % len(EDITS)] for at in range(50)]
    truth = {}
    for row, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        train[place] = heldout[row] if kind == "verbatim" else EDITS[kind](heldout[row], random_)
        truth[place] = (row, kind)
    return Planted(train, heldout, truth)


@dataclass
class Tally:
    """What one rule found, over seeds: planted and missed by kind, edited texts found and false alarms by seed."""

    planted: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    edited_found: list[int] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)

    def count(self, truth: dict[int, tuple[int, str]], found: set[int]) -> None:
        kinds = {place: kind for place, (_, kind) in truth.items()}
        self.planted.update(kinds.values())
        self.missed.update(kind for place, kind in kinds.items() if place not in found)
        self.edited_found.append(sum(kinds.get(place, "verbatim") != "verbatim" for place in found))
        self.alarms.append(len(found - set(truth)))

    def cells(self) -> list[str]:
        shares = [f"{100 * self.missed[kind] / self.planted[kind]:.1f}" for kind in ("verbatim", *EDITS)]
        found = f"{min(self.edited_found)}, {np.mean(self.edited_found):.1f}"
        return [*shares, found, f"{np.mean(self.alarms):.1f}, {max(self.alarms)}"]


def tallies(domain: Domain) -> dict[str, Tally]:
    """By threshold, near-copies and, for comparison, similarity alone."""
    found: dict[str, Tally] = defaultdict(Tally)
    for seed in range(SEEDS):
        data = planted(NUM_ROWS, seed, domain)
        heldout, train = ([normalised(text) for text in texts] for texts in (data.heldout, data.train))
        for threshold in THRESHOLDS:
            index = NearIndex(threshold, seed)
            index.add(heldout)
            copies = {at: near.similarity for at, near in enumerate(index.matches(train)) if near is not None}
            alike = {at for at, similarity in copies.items() if similarity >= threshold}
            found[f"{threshold}"].count(data.truth, set(copies))
            found[f"{threshold}, similarity alone"].count(data.truth, alike)
    return found


def main() -> None:
    for domain in get_args(Domain):
        print(f"\n{domain}: {SEEDS} seeds, {NUM_ROWS:,} training texts; missed % by kind, then what was found\n")
        heads = ["threshold", "verbatim", *EDITS, "edited of 50: least, mean", "false alarms: mean, most"]
        print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        for name, tally in sorted(tallies(domain).items()):
            print(f"| {' | '.join([name, *tally.cells()])} |", flush=True)


if __name__ == "__main__":
    main()
