"""Tasks for the shop's database: orders changed, added, totalled, deleted, or left alone because stock is short."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.environments.database import Database, world
from pipelines.environments.demonstrations import Asked, Called, Simulation, records


class _Shop:
    """An episode's tables and its dice."""

    def __init__(self, seed: str) -> None:
        self.rng, self.tables = random.Random(f"question {seed}"), world(seed)

    def pick(self, *forms: str) -> str:
        return self.rng.choice(forms)

    def any(self, table: str) -> tuple[Any, ...]:
        return self.rng.choice(self.tables[table])


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of shape messages, as `demonstrations.records` makes them."""
    return records(SIMULATION, count, seed, settings)


def _query(sql: str) -> Called:
    return ("query", {"sql": sql})


def _execute(sql: str) -> Called:
    return ("execute", {"sql": sql})


# --- one function a kind ------------------------------------------------------------------------


def change(seed: str) -> Asked:
    shop = _Shop(seed)
    order = shop.any("orders")
    status = shop.rng.choice([name for name in ("open", "shipped", "cancelled") if name != order[4]])
    text = shop.pick("Set order {} to {}.", "Order {} is now {}.", "Mark order {} as {}.").format(order[0], status)
    return Asked(text, [], [_execute(f"UPDATE orders SET status='{status}' WHERE id={order[0]}")])


def find(seed: str) -> Asked:
    """The order is told by whose it is and what of: one has to look for its number."""
    shop = _Shop(seed)
    order = shop.any("orders")
    who, what = order[1:3]
    quantity = shop.rng.choice([number for number in range(1, 20) if number != order[3]])
    text = shop.pick("{} wants {} of {} instead.", "Change {}'s order: {} of {}.").format(who, quantity, what)
    looked = f"SELECT id FROM orders WHERE customer='{who}' AND item='{what}'"
    return Asked(text, [_query(looked)], [_execute(f"UPDATE orders SET quantity={quantity} WHERE id={order[0]}")])


def add(seed: str) -> Asked:
    shop = _Shop(seed)
    who, what = shop.any("customers"), max(shop.tables["items"], key=lambda item: item[2])
    return _ordered(shop, who, what, shop.rng.randint(1, what[2]))


def decline(seed: str) -> Asked:
    """More is ordered than there is."""
    shop = _Shop(seed)
    who, what = shop.any("customers"), shop.any("items")
    return _ordered(shop, who, what, what[2] + shop.rng.randint(1, 20))


def _ordered(shop: _Shop, who: tuple[Any, ...], what: tuple[Any, ...], quantity: int) -> Asked:
    text = shop.pick("{w} orders {q} of {i}.", "Add an order: {q} of {i} for {w}.", "Order {q} of {i} for {w}.")
    looked = f"SELECT stock FROM items WHERE name='{what[0]}'"
    sql = f"INSERT INTO orders (customer,item,quantity) VALUES ('{who[0]}','{what[0]}',{quantity})"
    enough = what[2] >= quantity
    said = text.format(w=who[0], q=quantity, i=what[0])
    return Asked(said, [_query(looked)], [_execute(sql)] if enough else [], "Done." if enough else "No.")


def total(seed: str) -> Asked:
    """A number that has to be worked out, written under a name."""
    shop = _Shop(seed)
    who, name = shop.any("customers")[0], f"t{shop.rng.randint(100, 999)}"
    text = shop.pick(
        "Write the value of {}'s open orders into totals as {}.", "Total {}'s open orders (price times quantity) as {}."
    )
    sql = (
        f"INSERT INTO totals SELECT '{name}',coalesce(sum(price*quantity),0) FROM orders JOIN items ON name=item "
        f"WHERE customer='{who}' AND status='open'"
    )
    return Asked(text.format(who, name), [], [_execute(sql)])


def prices(seed: str) -> Asked:
    """Every item that meets a condition, at least one."""
    shop = _Shop(seed)
    least, by = max(item[1] for item in shop.tables["items"]) - shop.rng.randint(0, 20), shop.rng.randint(1, 30)
    text = shop.pick("Raise prices of {} or more by {}.", "Items that cost at least {} become {} dearer.")
    return Asked(text.format(least, by), [], [_execute(f"UPDATE items SET price=price+{by} WHERE price>={least}")])


def delete(seed: str) -> Asked:
    shop = _Shop(seed)
    order = shop.any("orders")
    who, status = order[1], order[4]
    city = next(customer[1] for customer in shop.tables["customers"] if customer[0] == who)
    field, value = shop.rng.choice([("name", who), ("city", city)])
    least = max(1, order[3] - shop.rng.randint(0, 2))
    text = shop.pick("Delete {s} orders of {q} or more pieces {v}.", "Remove orders {v} if {s} and of at least {q}.")
    where = f"from {value}" if field == "city" else f"by {value}"
    chosen = f"customer IN (SELECT name FROM customers WHERE city='{city}')" if field == "city" else f"customer='{who}'"
    sql = f"DELETE FROM orders WHERE status='{status}' AND quantity>={least} AND {chosen}"
    return Asked(text.format(s=status, q=least, v=where), [], [_execute(sql)])


def condition(seed: str) -> Asked:
    """The stock is filled up if it is low, which is so in two of three."""
    shop = _Shop(seed)
    item, amount = shop.any("items"), shop.rng.randint(5, 90)
    holds = shop.rng.random() < 2 / 3
    below = item[2] + shop.rng.randint(1, 9) if holds else shop.rng.randint(0, item[2])
    text = shop.pick("If stock of {i} is below {b}, add {a}.", "Add {a} to the stock of {i} if it is below {b}.")
    goal = [_execute(f"UPDATE items SET stock=stock+{amount} WHERE name='{item[0]}'")] if holds else []
    looked = _query(f"SELECT stock FROM items WHERE name='{item[0]}'")
    return Asked(text.format(i=item[0], b=below, a=amount), [looked], goal, "Done." if holds else "No.")


KINDS = {
    "change": change,
    "find": find,
    "add": add,
    "total": total,
    "prices": prices,
    "delete": delete,
    "if": condition,
    "decline": decline,
}
SIMULATION = Simulation("database", Database, KINDS)
