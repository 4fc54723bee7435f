"""Numbers as a page shows them: rounded by their unit, each with what it is as attributes that a program can read."""

from collections.abc import Mapping

from markupsafe import Markup

from pipelines.evaluation.compare import Comparison
from pipelines.evaluation.measure import Measure, Unit
from pipelines.interval import Interval

NONE = Markup("-")
About = Mapping[str, object]


def plain(value: float, unit: Unit) -> str:
    """The value with its unit: shares in %, seconds under ten in ms."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "seconds":
        return f"{1000 * value:,.0f} ms" if value < 10 else f"{value:,.1f} s"
    if unit == "USD":
        return f"$ {value:,.2f}" if value >= 1 else f"$ {value:.3g}"
    return f"{value:,.3f}" if unit == "score" else f"{value:,.1f} {unit}"


def step(value: float, unit: Unit, signed: bool = True) -> str:
    """A difference of two values; that of shares is in points."""
    sign = "+z" if signed else "z"  # no -0.0
    if unit == "share":
        return f"{100 * value:{sign}.1f} points"
    return f"{value:{sign}.3f}" if unit == "score" else f"{value:{sign},.1f} {unit}"


def p_value(p: float) -> str:
    """Three decimals, or that it is below them."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def tagged(text: object, part: str, about: About) -> Markup:
    """The text in a span that says what it is: `data-part`, and an attribute `data-NAME` for each of `about`."""
    attributes = Markup("").join(Markup(' data-{}="{}"').format(name, value) for name, value in about.items())
    return Markup('<span data-part="{}"{}>{}</span>').format(part, attributes, text)


def rows(number: int, about: About) -> Markup:
    """How many rows a number rests on."""
    return tagged(f"{number:,}", "n", about)


def value(measure: Measure | None, subject: str) -> Markup:
    """A measure's value; a dash without one."""
    return NONE if measure is None else tagged(plain(measure.value, measure.unit), "value", _of(measure, subject))


def between(measure: Measure | None, subject: str) -> Markup:
    """A measure's interval; nothing where it has none."""
    if measure is None or measure.low is None or measure.high is None:
        return Markup("")
    return bounds(Interval(measure.value, measure.low, measure.high), measure.unit, _of(measure, subject))


def size(measure: Measure | None, subject: str) -> Markup:
    """How many rows a measure rests on."""
    return NONE if measure is None else rows(measure.num_rows, _of(measure, subject))


def _of(measure: Measure, subject: str) -> About:
    return {"subject": subject, "metric": measure.key}


def bounds(interval: Interval, unit: Unit, about: About) -> Markup:
    """An interval's bounds, shares in % without the sign."""
    low, high = (plain(bound, unit).removesuffix(" %") for bound in (interval.low, interval.high))
    return tagged(low, "low", about) + " to " + tagged(high, "high", about)


def rate(interval: Interval, about: About) -> Markup:
    """A share with its interval."""
    return Markup("{} <small>{}</small>").format(
        tagged(plain(interval.value, "share"), "value", about), bounds(interval, "share", about)
    )


class Compared:
    """The parts of a comparison by one metric as they are shown; `about` says whose it is."""

    def __init__(self, comparison: Comparison, unit: Unit, about: About) -> None:
        self._comparison, self._unit, self._about = comparison, unit, about
        self.method = comparison.p_method

    def _step(self, value: float, part: str, bare: bool) -> Markup:
        text = step(value, self._unit)
        return tagged(text.removesuffix(" points") if bare else text, part, self._about)

    @property
    def difference(self) -> Markup:
        return self._step(self._comparison.difference.value, "value", bare=False)

    @property
    def bounds(self) -> Markup:
        found = self._comparison.difference
        return self._step(found.low, "low", bare=True) + " to " + self._step(found.high, "high", bare=True)

    @property
    def p(self) -> Markup:
        return tagged(p_value(self._comparison.p), "p", self._about)

    @property
    def detectable(self) -> Markup:
        found = self._comparison.minimum_detectable_difference
        return NONE if found is None else tagged(step(found, self._unit, signed=False), "detectable", self._about)

    @property
    def gained(self) -> Markup:
        return self._count(self._comparison.num_gained, "gained")

    @property
    def lost(self) -> Markup:
        return self._count(self._comparison.num_lost, "lost")

    @property
    def num_rows(self) -> Markup:
        return rows(self._comparison.num_rows, self._about)

    def _count(self, number: int | None, part: str) -> Markup:
        return NONE if number is None else tagged(f"{number:,}", part, self._about)
