"""What an endpoint costs, and the limit that it may not go over."""

import asyncio
import math
from dataclasses import dataclass, field

PER_MILLION = 1e-6


@dataclass
class Spending:
    """An account in US dollars; prices are for a million tokens, None where nothing is known of them.

    A request's worst case is reserved before it is sent and settled afterwards, so that `spent` goes over `limit`
    only by what requests under way cost beyond the worst case that was estimated for them.
    """

    limit: float | None
    price_in: float | None
    price_out: float | None
    spent: float = 0.0
    _reserved: list[float] = field(default_factory=list)
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def cost(self, prompt_tokens: int | None, num_tokens: int | None) -> float | None:
        """Dollars for so many tokens; None where a price or a count isn't known."""
        if self.price_in is None or self.price_out is None or prompt_tokens is None or num_tokens is None:
            return None
        return (self.price_in * prompt_tokens + self.price_out * num_tokens) * PER_MILLION

    async def reserve(self, worst: float) -> bool:
        """Sets `worst` dollars aside, once requests under way have left enough; False where they can't any more."""
        while self.limit is not None and self._with_reserved(worst) > self.limit:
            if self.spent + worst > self.limit:
                return False
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._reserved.append(worst)
        return True

    def settle(self, worst: float, cost: float) -> None:
        """Takes back what was reserved and counts what was charged."""
        self._reserved.remove(worst)
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _with_reserved(self, worst: float) -> float:
        return math.fsum([self.spent, worst, *self._reserved])
