"""Tasks for the notebook: numbers and words that a table holds, and numbers that only a program finds."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.environments.demonstrations import Asked, Simulation, records
from pipelines.environments.notebook import CITIES, Notebook, world

_BETWEEN = "{} <= r['price'] <= {}"


class _Table:
    """An episode's rows and its dice."""

    def __init__(self, seed: str) -> None:
        self.rng, self.rows = random.Random(f"question {seed}"), world(seed)

    def pick(self, *forms: str) -> str:
        return self.rng.choice(forms)

    def priced(self) -> tuple[int, int, list[dict[str, Any]]]:
        """A lowest and a highest price, and the rows between them."""
        low, high = sorted(self.rng.sample(range(3, 96), 2))
        return low, high, [row for row in self.rows if low <= row["price"] <= high]


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of shape messages, as `demonstrations.records` makes them."""
    return records(SIMULATION, count, seed, settings)


def _asked(text: str, code: str, answer: str | int) -> Asked:
    return Asked(text, [("run", {"code": code})], [("submit", {"answer": str(answer)})])


# --- one function a kind ------------------------------------------------------------------------


def total(seed: str) -> Asked:
    table = _Table(seed)
    low, high, rows = table.priced()
    text = table.pick("Sum the quantity where price is {} to {}.", "Total quantity of rows with price {} to {}?")
    code = f"print(sum(r['quantity'] for r in rows if {_BETWEEN.format(low, high)}))"
    return _asked(text.format(low, high), code, sum(row["quantity"] for row in rows))


def count(seed: str) -> Asked:
    table = _Table(seed)
    low, high, rows = table.priced()
    city = table.rng.choice(CITIES)
    text = table.pick("How many rows of {c} have price {l} to {h}?", "Count rows with city {c} and price {l} to {h}.")
    code = f"print(sum(r['city'] == '{city}' and {_BETWEEN.format(low, high)} for r in rows))"
    return _asked(text.format(c=city, l=low, h=high), code, sum(row["city"] == city for row in rows))


def value(seed: str) -> Asked:
    """The value is price times quantity."""
    table = _Table(seed)
    low, high, rows = table.priced()
    text = table.pick(
        "Sum price times quantity where price is {} to {}.", "Price times quantity, total for price {} to {}?"
    )
    code = f"print(sum(r['price'] * r['quantity'] for r in rows if {_BETWEEN.format(low, high)}))"
    return _asked(text.format(low, high), code, sum(row["price"] * row["quantity"] for row in rows))


def largest(seed: str) -> Asked:
    """The item of one row, if there is any."""
    table = _Table(seed)
    low, high, rows = table.priced()
    most = table.rng.random() < 0.5
    text = table.pick(
        "Which item of price {l} to {h} has the {f} price times quantity, or none?",
        "Item of {f} price times quantity, for price {l} to {h}, or none?",
    )
    chosen = (max if most else min)(rows, key=lambda row: row["price"] * row["quantity"], default={"item": "none"})
    code = (
        f"rows = [r for r in rows if {_BETWEEN.format(low, high)}]\n"
        f"best = {'max' if most else 'min'}"
        "(rows, key=lambda r: r['price'] * r['quantity'], default={'item': 'none'})\n"
        "print(best['item'])"
    )
    return _asked(text.format(f="largest" if most else "smallest", l=low, h=high), code, chosen["item"])


def group(seed: str) -> Asked:
    """The sums of every city, in the order of the alphabet."""
    table = _Table(seed)
    low, high, rows = table.priced()
    sums = Counter[str]()
    for row in rows:
        sums[row["city"]] += row["quantity"]
    best = min(sums, key=lambda city: (-sums[city], city), default="none")
    text = table.pick(
        "Which city has the most quantity with price {} to {}? If tied, the first by name; none if none.",
        "City of largest summed quantity, price {} to {} (first by name if tied, or none)?",
    )
    code = (
        f"sums = {{}}\nfor r in rows:\n    if {_BETWEEN.format(low, high)}:\n"
        "        sums[r['city']] = sums.get(r['city'], 0) + r['quantity']\n"
        "print(min(sums, key=lambda c: (-sums[c], c), default='none'))"
    )
    return _asked(text.format(low, high), code, best)


def power(seed: str) -> Asked:
    rng = random.Random(f"question {seed}")
    base, exponent, modulus = rng.randint(3, 99), rng.randint(20, 300), rng.choice([997, 1009, 9973, 10007])
    text = rng.choice(["{} to the power {}, modulo {}?", "Remainder of {}**{} by {}?"])
    return _asked(
        text.format(base, exponent, modulus), f"print({base}**{exponent} % {modulus})", pow(base, exponent, modulus)
    )


def primes(seed: str) -> Asked:
    rng = random.Random(f"question {seed}")
    low = rng.randint(10, 900)
    high = low + rng.randint(30, 300)
    text = rng.choice(["How many primes from {} to {}?", "Count primes between {} and {}, both included."])
    code = f"print(sum(all(n % d for d in range(2, int(n**.5) + 1)) for n in range({low}, {high + 1})))"
    found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(low, high + 1))
    return _asked(text.format(low, high), code, found)


KINDS = {
    "total": total,
    "count": count,
    "value": value,
    "largest": largest,
    "group": group,
    "power": power,
    "primes": primes,
}
SIMULATION = Simulation("notebook", Notebook, KINDS)
