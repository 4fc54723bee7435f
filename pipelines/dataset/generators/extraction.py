"""A bank's orders in plain words, and what a program needs of each as JSON."""

import datetime
import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.generators.settings import known, part
from pipelines.errors import UserError

SETTINGS = ("part",)
# fmt: off
FIRST = (
    "Maria", "Paul", "Aisha", "Chen", "Lucas", "Ines", "Omar", "Greta", "Tomas", "Yuki", "Priya", "Janek", "Sofia",
    "Marco", "Helen", "Igor", "Nadia", "Felix", "Ruth", "Dario", "Elena", "Samuel", "Lena", "Victor", "Hana",
)
LAST = (
    "Novak", "Silva", "Keller", "Rossi", "Tanaka", "Okafor", "Lindqvist", "Haddad", "Moreau", "Kowalski", "Fischer",
    "Petrov", "Mensah", "Ibarra", "Doyle", "Bauer", "Costa", "Yilmaz", "Horvat", "Jansen", "Mwangi", "Sato",
)
FIRMS = (
    "Alder Print", "Brook & Sons", "City Water", "Delta Cycles", "Elm Street Dental", "Fern Insurance", "Golden Gym",
    "Harbour Energy", "Iris Flowers", "Jade Telecom", "Kestrel Roofing", "Linden Books", "North Garage",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
# fmt: on
CURRENCIES = ("EUR", "GBP", "USD", "CHF", "SEK", "PLN")
REFERENCES = ("rent", "deposit", "dinner", "gift", "tuition", "membership", "electricity", "repair", "tickets", "loan")
SIGNS = {"EUR": "€", "GBP": "£", "USD": "$"}
ORDERS = (
    "Please send {amount} to {to}{date}{reference}.",
    "I need to pay {to} {amount}{date}{reference}",
    "transfer {amount} to {to}{date}{reference} thanks",
    "Hi, could you move {amount} to {to}{date}{reference}?",
    "{to} should get {amount} from my account{date}{reference}.",
    "Payment to {to}: {amount}{date}{reference}",
    "Invoice from {to} over {amount}, to be paid{date}{reference}.",
    "Set up {amount} for {to}{date}{reference}, please.",
)
_START = datetime.date(2026, 1, 1)
_HELDOUT_OF_256 = 51  # a fifth of those who are paid
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class _Order:
    amount: float
    currency: str
    to: str
    date: datetime.date | None
    reference: str | None

    def answer(self) -> str:
        date = None if self.date is None else self.date.isoformat()
        amount = int(self.amount) if self.amount.is_integer() else self.amount
        fields = {"amount": amount, "currency": self.currency, "to": self.to, "date": date}
        return json.dumps({**fields, "reference": self.reference}, ensure_ascii=False)


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`count` different orders as {prompt, answer}; the answer is JSON that data/extraction/schema.json describes.

    Setting: `part`, train or heldout, which share nobody who is paid; null for all. Raises UserError for other
    settings.
    """
    known(settings, SETTINGS)
    wanted = part(settings)
    names = [*(f"{first} {last}" for first in FIRST for last in LAST), *FIRMS * 20]
    paid = [name for name in names if wanted is None or (wanted == "heldout") == _is_heldout(name)]
    draw, seen = random.Random(seed), set[str]()
    for _ in range(count):
        prompt, order = _new(paid, draw, seen)
        yield {"prompt": prompt, "answer": order.answer()}


def _new(paid: list[str], draw: random.Random, seen: set[str]) -> tuple[str, _Order]:
    for _ in range(_TRIES):
        order = _order(paid, draw)
        prompt = _written(order, draw)
        if prompt not in seen:
            seen.add(prompt)
            return prompt, order
    raise UserError(f"count: hardly more than {len(seen):,} different orders can be made")


def _order(paid: list[str], draw: random.Random) -> _Order:
    amount = float(draw.randint(5, 4000)) if draw.random() < 0.5 else draw.randint(500, 400_000) / 100
    date = _START + datetime.timedelta(days=draw.randrange(730)) if draw.random() < 0.7 else None
    return _Order(amount, draw.choice(CURRENCIES), draw.choice(paid), date, _reference(draw))


def _reference(draw: random.Random) -> str | None:
    if draw.random() < 0.35:
        return None
    return draw.choice((draw.choice(REFERENCES), f"INV-{draw.randint(1000, 9999)}", f"RF{draw.randint(10, 99)} 2026"))


def _written(order: _Order, draw: random.Random) -> str:
    figure = f"{order.amount:,.0f}" if order.amount.is_integer() and draw.random() < 0.7 else f"{order.amount:,.2f}"
    signed = order.currency in SIGNS and draw.random() < 0.5
    amount = f"{SIGNS[order.currency]}{figure}" if signed else f"{figure} {order.currency}"
    date = "" if order.date is None else draw.choice((" on ", " by ", ", date ")) + _day(order.date, draw)
    said = (", reference {}", " with the reference {}", " (ref. {})")
    reference = "" if order.reference is None else draw.choice(said).format(order.reference)
    return draw.choice(ORDERS).format(amount=amount, to=order.to, date=date, reference=reference)


def _day(date: datetime.date, draw: random.Random) -> str:
    month = MONTHS[date.month - 1]  # strftime's names follow the machine's locale
    written = (f"{date.day} {month} {date.year}", f"{month} {date.day}, {date.year}", date.isoformat())
    return draw.choice((*written, f"{date.day:02}.{date.month:02}.{date.year}"))


def _is_heldout(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < _HELDOUT_OF_256
