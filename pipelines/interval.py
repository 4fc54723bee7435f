"""A measured value with its 95 % interval."""

from dataclasses import dataclass

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between the bounds of its 95 % interval; rates and differences are shares of 1."""

    value: float
    low: float
    high: float

    def metrics(self, name: str) -> dict[str, float]:
        """The three numbers as metrics `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson(successes: int, trials: int) -> Interval:
    """A rate with its Wilson score interval; `trials` must be at least 1.

    Method: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927); it keeps its coverage for rates near 0 and 1 and for few trials (Brown, Cai and
    DasGupta, Statistical Science 16, 2001, section 4).
    """
    bounds = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    rate = successes / trials
    # Rounding can leave a bound 1e-17 on the wrong side of a rate of 0 or 1.
    return Interval(rate, min(float(bounds.low), rate), max(float(bounds.high), rate))
