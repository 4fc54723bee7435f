"""Alarms by hand: over windows, from the start, under and over their limits."""

from collections.abc import Sequence

import pytest

from pipelines.config import schema
from pipelines.config.compose import compose
from pipelines.errors import Refused
from pipelines.rewards.watch import Raised, Watch, metrics_of, stop_for

QUIET = {"frac_reward_zero_std": 0.2, "entropy": 0.5, "completions/mean_length": 10.0, "completions/clipped_ratio": 0.0}


SHIPPED = compose([]).config.grpo.watch.model_dump()


def watch(**changed: dict[str, object]) -> Watch:
    alarms = {name: SHIPPED[name] | change for name, change in changed.items()}
    return Watch(schema.Watch.model_validate(SHIPPED | {"window": 2} | alarms))


def names(found: Sequence[Raised]) -> list[str]:
    return [alarm.name for alarm in found]


def test_nothing_is_raised_before_a_window_is_full_or_while_all_is_well() -> None:
    watched = watch()
    assert watched.observe({**QUIET, "entropy": 0.0}) == []
    assert [watched.observe(QUIET) for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize(
    ("name", "key", "bad"),
    [
        ("zero_variance", "frac_reward_zero_std", 0.95),
        ("entropy", "entropy", 0.001),
        ("clipped", "completions/clipped_ratio", 0.9),
        ("kl", "kl", 11.0),
    ],
)
def test_a_value_beyond_its_limit_over_the_window_raises_its_alarm_alone(name: str, key: str, bad: float) -> None:
    watched = watch()
    watched.observe({**QUIET, key: bad})
    found = watched.observe({**QUIET, key: bad})
    assert names(found) == [name]
    assert found[0].value == pytest.approx(bad)
    assert metrics_of(found)[f"alarm/{name}"] == 1.0
    assert sum(metrics_of(found).values()) == 1.0
    for _ in range(2):
        found = watched.observe({**QUIET, key: 0.5 if name == "entropy" else 0.0})
    assert found == []


def test_growth_is_measured_from_the_first_window() -> None:
    watched = watch(audit_gap={"limit": 0.1}, length_growth={"limit": 2.0})
    for _ in range(2):
        watched.observe({**QUIET, "audit/refused": 0.3})
    assert (
        watched.observe({**QUIET, "audit/refused": 0.4, "completions/mean_length": 25.0}) == []
    )  # means 0.35 and 17.5
    found = watched.observe({**QUIET, "audit/refused": 0.5, "completions/mean_length": 25.0})
    assert {alarm.name: alarm.value for alarm in found} == pytest.approx({"audit_gap": 0.15, "length_growth": 2.5})


def test_logs_without_an_audit_leave_its_window_alone() -> None:
    watched = watch(audit_gap={"limit": 0.1})
    for logs in ({**QUIET, "audit/refused": 0.0}, QUIET, {**QUIET, "audit/refused": 0.0}, QUIET):
        assert watched.observe(logs) == []
    watched.observe({**QUIET, "audit/refused": 0.4})
    assert names(watched.observe({**QUIET, "audit/refused": 0.4})) == ["audit_gap"]


def test_an_alarm_that_stops_says_what_to_look_at() -> None:
    watched = watch(kl={"limit": 1.0, "stop": True})
    watched.observe({**QUIET, "kl": 3.0})
    found = watched.observe({**QUIET, "kl": 3.0})
    with pytest.raises(Refused, match=r"step 7: kl 3 is over its limit 1 over the last 2 steps \(grpo.watch\)"):
        stop_for(found, 7, 2)
    stop_for([], 7, 2)
    watched = watch(kl={"limit": 1.0, "stop": False})
    watched.observe({**QUIET, "kl": 3.0})
    stop_for(watched.observe({**QUIET, "kl": 3.0}), 7, 2)


def test_an_alarm_without_a_limit_is_never_raised() -> None:
    watched = watch(clipped={"limit": None})
    for _ in range(3):
        assert watched.observe({**QUIET, "completions/clipped_ratio": 1.0}) == []
