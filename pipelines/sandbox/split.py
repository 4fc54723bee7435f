"""Tests parted in two: the calls of the program, and the comparison with what is expected.

`assert f(1, 2) == [3]` becomes the call `f(1, 2)`, evaluated beside the program, and `assert _0 == [3]`, evaluated in a
process that the program can't reach. So the program never meets the values that it should give.
"""

import ast
import builtins
import copy
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

_BUILTINS = frozenset(dir(builtins))
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# What may be done to a result beside the program, where the result itself can't be told: it adds no expected value.
_AROUND = frozenset({"list", "tuple", "set", "frozenset", "dict", "sorted", "len", "sum", "min", "max", "next", "iter"})
_AROUND |= {"str", "int", "float", "reversed"}


class CannotSplit(ValueError):
    """A test in which no call of the program can be told from the values that it expects."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One call of the program: the nodes that may be told as its value, innermost first."""

    levels: tuple[ast.expr, ...]

    def sources(self) -> list[str]:
        """The call, and each expression around it as one of `_`, the value before."""
        told = [ast.unparse(self.levels[0])]
        for inner, outer in zip(self.levels, self.levels[1:], strict=False):
            told.append(ast.unparse(_replaced(outer, {inner: "_"})))
        return told


@dataclass(frozen=True, slots=True)
class Split:
    """One test: its condition, the program's calls in it, and which names the comparison takes from elsewhere."""

    condition: ast.expr
    slots: tuple[Slot, ...]
    modules: tuple[str, ...]
    needs_setup: bool

    def remaining(self, levels: Sequence[int]) -> ast.Expression:
        """The condition, with the names `_0`, `_1`, ... in the place of the calls.

        Raises ValueError unless `levels` names one of the expressions of each call.
        """
        if len(levels) != len(self.slots):
            raise ValueError(f"{len(self.slots)} calls, {len(levels)} results")
        names: dict[ast.expr, str] = {}
        for number, (slot, level) in enumerate(zip(self.slots, levels, strict=True)):
            if not 0 <= level < len(slot.levels):
                raise ValueError(f"a call has no expression {level}")
            names[slot.levels[level]] = f"_{number}"
        return ast.fix_missing_locations(ast.Expression(_replaced(self.condition, names)))


@lru_cache(maxsize=512)
def split(setup: str, tests: tuple[str, ...]) -> tuple[Split, ...]:
    """The tests, parted; the programs themselves are never parsed here, because a parser may fall to its input.

    A name that is no builtin, isn't bound by the set-up and is no module of the standard library is the program's.
    Raises CannotSplit for a test that isn't one assertion or holds no such name, and where the expected value may be
    an argument (`assert isclose(f(1), 2.5)` with an `isclose` from nobody knows where).
    """
    if not tests:
        raise CannotSplit("there are no tests")
    conditions = [_condition(number, test) for number, test in enumerate(tests, 1)]
    given = _bound(_parsed(setup, "the set-up"))
    known = _BUILTINS | given
    if not any(_unknown(condition, known) for condition in conditions):
        known -= _overridden(conditions)
    return tuple(_split(number, condition, known, given) for number, condition in enumerate(conditions, 1))


def _parsed(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CannotSplit(f"{what} can't be parsed: {error}") from error


def _condition(number: int, test: str) -> ast.expr:
    body = _parsed(test, f"test {number}").body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise CannotSplit(f"test {number} isn't one assertion")
    return body[0].test


def _bound(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def _overridden(conditions: Iterable[ast.expr]) -> set[str]:
    """A builtin's name that the program gives to its own function: each test's leftmost operand is a call of it."""
    names = set()
    for condition in conditions:
        left = condition.left if isinstance(condition, ast.Compare) else condition
        names.add(left.func.id if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) else "")
    return names if len(names) == 1 else set()


def _modules(tree: ast.AST, known: Iterable[str]) -> set[str]:
    """Names that are only used as `module.attribute`, of modules of the standard library."""
    reached = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {node.id for node in reached if isinstance(node, ast.Name)} - set(known)
    bare = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in reached}
    return {name for name in names - bare if name in sys.stdlib_module_names}


def _unknown(tree: ast.AST, known: Iterable[str]) -> set[str]:
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return used - set(known) - _bound(tree) - _modules(tree, known)


def _split(number: int, condition: ast.expr, known: set[str] | frozenset[str], given: set[str]) -> Split:
    unknown = _unknown(condition, known)
    if not unknown:
        raise CannotSplit(f"test {number} holds no call of the program")
    parents = {child: node for node in ast.walk(condition) for child in ast.iter_child_nodes(node)}
    slots = tuple(_slot(node, parents) for node in _outermost(condition, unknown))
    local = _bound(condition)
    for slot in slots:
        _check(number, slot, condition, unknown, local)
    rest = _replaced(condition, {slot.levels[0]: "_" for slot in slots})
    used = {node.id for node in ast.walk(rest) if isinstance(node, ast.Name)}
    modules = tuple(sorted(_modules(rest, known)))
    return Split(condition, slots, modules, bool(used & given))


def _check(number: int, slot: Slot, condition: ast.expr, unknown: set[str], local: set[str]) -> None:
    inner = slot.levels[0]
    names = {node.id for node in ast.walk(inner) if isinstance(node, ast.Name)}
    if names & local:
        raise CannotSplit(f"test {number}: the call {ast.unparse(inner)} hangs on a variable of the test itself")
    judged = condition.operand if isinstance(condition, ast.UnaryOp) else condition
    lower = {name for name in names & unknown if not name[0].isupper()}
    if inner is judged and len(lower) > 1:
        raise CannotSplit(f"test {number}: {', '.join(sorted(lower))}: one may compare, with the expected value")


def _outermost(node: ast.AST, unknown: set[str]) -> Iterator[ast.expr]:
    """The calls (else the names) of the program that lie in no other of its calls."""
    found = _of_program(node, unknown)
    if found is not None:
        yield found
        return
    for child in ast.iter_child_nodes(node):
        yield from _outermost(child, unknown)


def _of_program(node: ast.AST, unknown: set[str]) -> ast.expr | None:
    """Where the expression begins with a name of the program: `f(1)` of `f(1).items()`, all of `Solver().solve(1)`."""
    path: list[ast.expr] = []
    step: ast.AST = node
    while isinstance(step, ast.Call | ast.Attribute | ast.Subscript):
        path.append(step)
        step = step.func if isinstance(step, ast.Call) else step.value
    if not isinstance(step, ast.Name) or step.id not in unknown:
        return None
    if path and isinstance(path[-1], ast.Call) and not step.id[0].isupper():
        return path[-1]
    return path[0] if path else step


def _slot(inner: ast.expr, parents: dict[ast.AST, ast.AST]) -> Slot:
    levels = [inner]
    node: ast.AST = inner
    while (around := parents.get(node)) is not None and _adds_nothing(around, node):
        assert isinstance(around, ast.expr)
        if not (isinstance(around, ast.Attribute) and isinstance(parents.get(around), ast.Call)):
            levels.append(around)
        node = around
    return Slot(tuple(levels))


def _adds_nothing(around: ast.AST, inner: ast.AST) -> bool:
    if isinstance(around, ast.Call):
        if around.keywords:
            return False
        if around.func is inner:
            return isinstance(inner, ast.Attribute) and not around.args
        return isinstance(around.func, ast.Name) and around.func.id in _AROUND and around.args == [inner]
    if isinstance(around, ast.Subscript):
        return around.value is inner and isinstance(around.slice, ast.Constant)
    return isinstance(around, ast.Attribute)


def _replaced(tree: ast.expr, names: dict[ast.expr, str]) -> ast.expr:
    """A copy with names in the place of the nodes; the nodes themselves stay, so they can be found again."""

    class Putting(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if isinstance(node, ast.expr) and node in names:
                return ast.copy_location(ast.Name(names[node], ast.Load()), node)
            shallow = copy.copy(node)
            for field, value in ast.iter_fields(node):
                if isinstance(value, list):
                    setattr(shallow, field, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
                elif isinstance(value, ast.AST):
                    setattr(shallow, field, self.visit(value))
            return shallow

    replaced = Putting().visit(tree)
    assert isinstance(replaced, ast.expr)
    return replaced
