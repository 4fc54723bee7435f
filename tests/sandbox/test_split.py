"""Tests parted into calls and comparisons, against partings written by hand."""

import ast

import pytest

from pipelines.sandbox.split import CannotSplit, split


@pytest.mark.parametrize(
    ("test", "calls", "rest"),
    [
        ("assert f(1, [2]) == [3]", [["f(1, [2])"]], "_0 == [3]"),
        ("assert set(f(1)) == set([1, 2])", [["f(1)", "set(_)"]], "set(_0) == set([1, 2])"),
        ("assert not f('a')", [["f('a')"]], "not _0"),
        ("assert math.isclose(f(2), 2.5, rel_tol=0.1)", [["f(2)"]], "math.isclose(_0, 2.5, rel_tol=0.1)"),
        ("assert f(1) == 2 and g(f(2)) == 3", [["f(1)"], ["g(f(2))"]], "_0 == 2 and _1 == 3"),
        ("assert sorted(list(f(1))) == [1]", [["f(1)", "list(_)", "sorted(_)"]], "sorted(list(_0)) == [1]"),
        ("assert f([Pair(1, 2)], 3) == 4", [["f([Pair(1, 2)], 3)"]], "_0 == 4"),
        ("assert Solver().solve(3) == 9", [["Solver().solve(3)"]], "_0 == 9"),
        ("assert f(1).items() == {1: 2}.items()", [["f(1)", "_.items()"]], "_0.items() == {1: 2}.items()"),
        ("assert f(1)[0] == 5", [["f(1)", "_[0]"]], "_0[0] == 5"),
        ("assert LIMIT == 5", [["LIMIT"]], "_0 == 5"),
        ("assert sum(4, 6) == 3", [["sum(4, 6)"]], "_0 == 3"),
        ("assert size((1, 2)) == sys.getsizeof((1, 2))", [["size((1, 2))"]], "_0 == sys.getsizeof((1, 2))"),
        ("assert f(1) == near(1)", [["f(1)"]], "_0 == near(1)"),
        ("assert f(1, 2).union({7}) == {7}", [["f(1, 2)"]], "_0.union({7}) == {7}"),
    ],
)
def test_calls_and_comparison(test: str, calls: list[list[str]], rest: str) -> None:
    (part,) = split("def near(x):\n    return x\n", (test,))
    assert [slot.sources() for slot in part.slots] == calls
    assert ast.unparse(part.remaining([0] * len(calls))) == rest


def test_a_wider_expression_takes_the_place_of_the_whole() -> None:
    (part,) = split("", ("assert sorted(list(f(1))) == [1]",))
    assert ast.unparse(part.remaining([1])) == "sorted(_0) == [1]"
    assert ast.unparse(part.remaining([2])) == "_0 == [1]"
    with pytest.raises(ValueError, match="no expression 3"):
        part.remaining([3])


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert 1 == 1", "holds no call of the program"),
        ("x = f(1)", "isn't one assertion"),
        ("assert f(1) ==", "can't be parsed"),
        ("assert isclose(f(1), 2.5)", "one may compare"),
        ("assert not compare(f(1), 2.5)", "one may compare"),
        ("assert all(f(x) == x for x in [1, 2])", "hangs on a variable of the test itself"),
    ],
)
def test_what_cannot_be_parted_is_refused(test: str, reason: str) -> None:
    with pytest.raises(CannotSplit, match=reason):
        split("", (test,))


def test_no_tests_prove_nothing() -> None:
    with pytest.raises(CannotSplit, match="no tests"):
        split("", ())
