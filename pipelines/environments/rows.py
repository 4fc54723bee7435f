"""Tasks for the bank: questions made from a seed, each with the calls that answer it and the state they lead to."""

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.environments.bank import CENTS, OWN, Bank, world
from pipelines.environments.demonstrations import Asked, Simulation, records
from pipelines.errors import UserError

Goal = list[tuple[str, dict[str, int]]]
MOST_STEPS = 4


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
    """Records as `demonstrations.records` makes them.

    `settings`: `kinds`, of KINDS (null: all); `max_steps`, 2 to MOST_STEPS, the changes that a question of kind several
    asks for at most. Raises UserError for other settings.
    """
    steps = settings.get("max_steps", 2)
    if type(steps) is not int or not 2 <= steps <= MOST_STEPS:
        raise UserError(f"settings: max_steps: expected 2 to {MOST_STEPS}, got {steps!r}")
    kinds = {name: functools.partial(_made, name, steps) for name in KINDS}
    yield from records(Simulation("bank", Bank, kinds, ("max_steps",)), count, seed, settings)


def _made(kind: str, max_steps: int, environment_seed: str) -> Asked:
    tables, rng = world(environment_seed), random.Random(f"question {environment_seed}")
    own = {name: [row for row in tables[name] if row[1] == OWN] for name in ("accounts", "cards")}
    return KINDS[kind](Situation(rng, own["accounts"], own["cards"], max_steps))


def _asked(text: str, goal: Goal, looks: bool, said: str) -> Asked:
    """`looks`: whether one has to see the accounts first."""
    return Asked(text, [("show", {})] if looks else [], goal, said)


# --- one function a kind ------------------------------------------------------------------------


def freeze(at: Situation) -> Asked:
    card, _ = at.card()
    text = at.pick("Freeze card {}.", "I lost card {}, block it.", "Please freeze my card {}.", "Card {} was stolen!")
    return _asked(text.format(card), [("freeze", {"card": card})], looks=False, said="Done.")


def limit(at: Situation) -> Asked:
    card, before = at.card()
    amount = at.rng.choice([value for value in range(50, 1000, 50) if value != before])
    text = at.pick("Set the limit of card {} to {}.", "Card {} needs a limit of {}.", "Limit card {} to {}, please.")
    return _asked(text.format(card, amount), [("limit", {"card": card, "amount": amount})], looks=False, said="Done.")


def more(at: Situation) -> Asked:
    """The new limit depends on the old one, which only the bank knows."""
    card, before = at.card()
    by = at.rng.choice([100, 200, 300])
    text = at.pick("Raise the limit of card {} by {}.", "Card {} needs {} more limit.")
    goal: Goal = [("limit", {"card": card, "amount": before + by})]
    return _asked(text.format(card, by), goal, looks=True, said="Done.")


def transfer(at: Situation) -> Asked:
    source, target = at.pair()
    amount = at.rng.randint(10, source[4] // CENTS)
    text = at.pick("Move {a} from {s} to {t}.", "Please transfer {a} from {s} to {t}.", "Send {a} to {t} from {s}.")
    asked = text.format(a=amount, s=at.named(source), t=at.named(target))
    return _asked(asked, _moved(source, target, amount), looks=True, said="Done.")


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
    return _asked(text[0].upper() + text[1:], [call for _, goal in chosen for call in goal], moved in chosen, "Done.")


def condition(at: Situation) -> Asked:
    """Moves money if there is enough of it, which is so in two of three."""
    source, target = at.pair()
    balance = source[4] // CENTS
    amount = at.rng.randint(10, balance)
    holds = at.rng.random() < 2 / 3
    least = at.rng.randint(amount, balance) if holds else balance + at.rng.randint(20, 500)
    text = at.pick("If {n} has at least {l}, move {a} to {t}.", "Move {a} from {n} to {t} if {n} holds {l} or more.")
    asked = text.format(n=source[2], l=least, a=amount, t=at.named(target))
    return _asked(asked, _moved(source, target, amount) if holds else [], looks=True, said="Done." if holds else "No.")


def decline(at: Situation) -> Asked:
    """A transfer that the balance, or else a closed account or its currency, doesn't allow."""
    source, target = at.pair()
    amount = source[4] // CENTS + at.rng.randint(20, 500)
    others = [account for account in at.accounts if account[3] != "USD" or account[5] != "open"]
    if others and at.rng.random() < 0.5:
        target, amount = others[0], at.rng.randint(10, source[4] // CENTS)
    text = at.pick("Move {a} from {s} to {t}.", "Please transfer {a} from {s} to {t}.", "Send {a} to {t} from {s}.")
    asked = text.format(a=amount, s=at.named(source), t=at.named(target))
    return _asked(asked, [], looks=True, said="No.")


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
