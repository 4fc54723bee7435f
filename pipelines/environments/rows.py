"""Tasks for the bank: questions made from a seed, each with the calls that answer it and the state they lead to."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.environments.bank import CENTS, OWN, SEED, Bank, world
from pipelines.environments.environment import GOAL, digest
from pipelines.errors import UserError

Goal = list[tuple[str, dict[str, int]]]
MOST_STEPS = 4
_TRIES = 200  # to make a question that was not asked yet


@dataclass(frozen=True)
class Asked:
    """A question, the calls that change the state, whether one has to look first, and what is said at the end."""

    text: str
    goal: Goal
    looks: bool
    said: str


@dataclass
class Situation:
    """A customer's accounts and cards, the dice, and how many changes a question may ask for."""

    rng: random.Random
    accounts: list[tuple[Any, ...]]
    cards: list[tuple[Any, ...]]
    max_steps: int

    def pick(self, *forms: str) -> str:
        return self.rng.choice(forms)

    def card(self) -> tuple[int, int]:
        """A card's number and its limit in dollars."""
        card = self.rng.choice(self.cards)
        return card[0], card[2] // CENTS

    def pair(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Two accounts between which money can go."""
        usable = [account for account in self.accounts if account[3] == "USD" and account[5] == "open"]
        first, second = self.rng.sample(usable, 2)
        return first, second

    def named(self, account: tuple[Any, ...]) -> str:
        return str(account[2]) if self.rng.random() < 0.7 else f"account {account[0]}"


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of shape messages: the question, the demonstration, the tools, answer, label, environment_seed and goal.

    `settings`: `kinds`, of KINDS (null: all), each as often as the others; `max_steps`, 2 to MOST_STEPS, the changes
    that a question of kind several asks for at most. No question is asked twice. Raises UserError for other settings.
    """
    kinds, max_steps = _settings(settings)
    bank, asked = Bank(), set[str]()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        for attempt in range(_TRIES):
            environment_seed = f"{seed}-{number}-{attempt}"
            made = _made(kind, environment_seed, max_steps)
            if made.text not in asked:
                break
        else:
            raise UserError(f"count: {count:,} is more than there are different questions of kind {kind}")
        asked.add(made.text)
        yield _record(bank, kind, environment_seed, made)


def _settings(settings: Mapping[str, Any]) -> tuple[list[str], int]:
    unknown = [name for name in settings if name not in ("kinds", "max_steps")]
    if unknown:
        guess = did_you_mean(str(unknown[0]), ["kinds", "max_steps"])
        raise UserError(f"settings: bank knows kinds and max_steps, got {unknown[0]!r}{guess}")
    kinds, steps = settings.get("kinds"), settings.get("max_steps", 2)
    kinds = list(KINDS) if kinds is None else kinds
    if not isinstance(kinds, list | tuple) or not kinds:
        raise UserError(f"settings: kinds: expected a list of {', '.join(KINDS)}, got {kinds!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"settings: kinds: expected {', '.join(KINDS)}, got {kind!r}{did_you_mean(kind, KINDS)}")
    if type(steps) is not int or not 2 <= steps <= MOST_STEPS:
        raise UserError(f"settings: max_steps: expected 2 to {MOST_STEPS}, got {steps!r}")
    return list(kinds), steps


def _made(kind: str, environment_seed: str, max_steps: int) -> Asked:
    tables, rng = world(environment_seed), random.Random(f"question {environment_seed}")
    own = {name: [row for row in tables[name] if row[1] == OWN] for name in ("accounts", "cards")}
    return KINDS[kind](Situation(rng, own["accounts"], own["cards"], max_steps))


def _record(bank: Bank, kind: str, environment_seed: str, made: Asked) -> dict[str, Any]:
    bank.reset(kept={SEED: environment_seed})
    messages: list[dict[str, Any]] = [{"role": "user", "content": made.text}]
    for name, arguments in [*([("show", dict[str, int]())] if made.looks else []), *made.goal]:
        function = {"name": name, "arguments": arguments}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        messages += [call, {"role": "tool", "name": name, "content": bank.call(name, arguments)}]
    return {
        "messages": [*messages, {"role": "assistant", "content": made.said}],
        "tools": bank.tools(),
        "answer": digest(bank.state()),
        "label": kind,
        SEED: environment_seed,
        GOAL: json.dumps(made.goal),
    }


# --- one function a kind ------------------------------------------------------------------------


def freeze(at: Situation) -> Asked:
    card, _ = at.card()
    text = at.pick("Freeze card {}.", "I lost card {}, block it.", "Please freeze my card {}.", "Card {} was stolen!")
    return Asked(text.format(card), [("freeze", {"card": card})], looks=False, said="Done.")


def limit(at: Situation) -> Asked:
    card, before = at.card()
    amount = at.rng.choice([value for value in range(50, 1000, 50) if value != before])
    text = at.pick("Set the limit of card {} to {}.", "Card {} needs a limit of {}.", "Limit card {} to {}, please.")
    return Asked(text.format(card, amount), [("limit", {"card": card, "amount": amount})], looks=False, said="Done.")


def more(at: Situation) -> Asked:
    """The new limit depends on the old one, which only the bank knows."""
    card, before = at.card()
    by = at.rng.choice([100, 200, 300])
    text = at.pick("Raise the limit of card {} by {}.", "Card {} needs {} more limit.")
    goal: Goal = [("limit", {"card": card, "amount": before + by})]
    return Asked(text.format(card, by), goal, looks=True, said="Done.")


def transfer(at: Situation) -> Asked:
    source, target = at.pair()
    amount = at.rng.randint(10, source[4] // CENTS)
    text = at.pick("Move {a} from {s} to {t}.", "Please transfer {a} from {s} to {t}.", "Send {a} to {t} from {s}.")
    asked = text.format(a=amount, s=at.named(source), t=at.named(target))
    return Asked(asked, _moved(source, target, amount), looks=True, said="Done.")


def several(at: Situation) -> Asked:
    """Two changes or more, none of which takes another back."""
    count = at.rng.randint(2, at.max_steps)
    cards = at.rng.sample([card[0] for card in at.cards], 2)
    source, target = at.pair()
    move, cap = at.rng.randint(10, source[4] // CENTS), at.rng.choice(range(50, 1000, 50))
    other = at.rng.choice([value for value in range(50, 1000, 50) if value != cap])
    moved = f"move {move} from {at.named(source)} to {at.named(target)}", _moved(source, target, move)
    steps: list[tuple[str, Goal]] = [
        moved,
        (f"freeze card {cards[0]}", [("freeze", {"card": cards[0]})]),
        (f"set the limit of card {cards[1]} to {cap}", [("limit", {"card": cards[1], "amount": cap})]),
        (f"limit card {cards[0]} to {other}", [("limit", {"card": cards[0], "amount": other})]),
    ]
    chosen = at.rng.sample(steps, count)
    text = " and ".join(part for part, _ in chosen) + "."
    return Asked(text[0].upper() + text[1:], [call for _, goal in chosen for call in goal], moved in chosen, "Done.")


def condition(at: Situation) -> Asked:
    """Moves money if there is enough of it, which is so in two of three."""
    source, target = at.pair()
    balance = source[4] // CENTS
    amount = at.rng.randint(10, balance)
    holds = at.rng.random() < 2 / 3
    least = at.rng.randint(amount, balance) if holds else balance + at.rng.randint(20, 500)
    text = at.pick("If {n} has at least {l}, move {a} to {t}.", "Move {a} from {n} to {t} if {n} holds {l} or more.")
    asked = text.format(n=source[2], l=least, a=amount, t=at.named(target))
    return Asked(asked, _moved(source, target, amount) if holds else [], looks=True, said="Done." if holds else "No.")


def decline(at: Situation) -> Asked:
    """A transfer that the balance, or else a closed account or its currency, doesn't allow."""
    source, target = at.pair()
    amount = source[4] // CENTS + at.rng.randint(20, 500)
    others = [account for account in at.accounts if account[3] != "USD" or account[5] != "open"]
    if others and at.rng.random() < 0.5:
        target, amount = others[0], at.rng.randint(10, source[4] // CENTS)
    text = at.pick("Move {a} from {s} to {t}.", "Please transfer {a} from {s} to {t}.", "Send {a} to {t} from {s}.")
    asked = text.format(a=amount, s=at.named(source), t=at.named(target))
    return Asked(asked, [], looks=True, said="No.")


def _moved(source: tuple[Any, ...], target: tuple[Any, ...], amount: int) -> Goal:
    return [("transfer", {"source": source[0], "target": target[0], "amount": amount})]


KINDS: dict[str, Callable[[Situation], Asked]] = {
    "freeze": freeze,
    "limit": limit,
    "raise": more,
    "transfer": transfer,
    "several": several,
    "if": condition,
    "decline": decline,
}
