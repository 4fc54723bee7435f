"""Problems of reasoning-gym: own answers pass, others don't, and no scorer is ever handed something to run."""

import builtins
import json
from fractions import Fraction
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.dataset.generators import reasoning as generator
from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.tasks.expression import Expression, polynomial
from pipelines.tasks.reasoning import answer_of, verifier

VERIFY = verifier(compose(["task=reasoning_gym"]).config.task)
# Some of every kind: a number, a text, a grid, several right answers, a scorer that runs what it is given, metadata
# whose tuples or keys JSON changes, no answer of its own.
# fmt: off
SAMPLE = (
    "arc_1d", "chain_sum", "coin_flip", "countdown", "cryptarithm", "game_of_life_halting", "graph_color", "kakurasu",
    "n_queens", "number_sorting", "polynomial_multiplication", "puzzle24", "rubiks_cube", "simple_integration",
    "string_insertion", "tower_of_hanoi", "word_sorting",
)
# fmt: on


def made(name: str, count: int = 3, seed: int = 7, **settings: Any) -> list[Row]:
    """Rows of a data set, made in this process."""
    return [
        Row(
            str(number),
            "toy",
            [{"role": "user", "content": fields["prompt"]}],
            [],
            fields["answer"],
            "",
            f"{name}:{number}",
            "a",
            kept={"entry": fields["entry"]},
        )
        for number, fields in enumerate(generator._made(name, count, seed, settings), 1)
    ]


def given(name: str, answer: str, **metadata: Any) -> Row:
    """A row with metadata of our own."""
    entry = {"dataset": name, "settings": {}, "metadata": metadata}
    return Row("1", "toy", [], [], answer, "", f"{name}:1", "a", kept={"entry": json.dumps(entry)})


def right(completion: str, row: Row) -> bool:
    return VERIFY(completion, row).correct


@pytest.mark.parametrize("name", SAMPLE)
def test_a_data_sets_own_answers_pass_and_altered_ones_fail(name: str) -> None:
    for row in made(name):
        assert right(row.answer, row), row
        assert right(f"Let me see.\n<answer>\n{row.answer}\n</answer>", row), row
        library = generator.dataset(name, {}, 1, 0)
        scored = library.score_answer(row.answer, {**json.loads((row.kept or {})["entry"]), "answer": row.answer})
        assert scored == 1.0 or name == "arc_1d", row
        for altered in (
            "",
            "x",
            f"{row.answer} or 5",
            f"{row.answer}x",
            f"{row.answer} {row.answer}",
            f"<answer>{row.answer}",
            f"<answer>{row.answer}</answer> <answer>5</answer>",
            f"{row.answer}\n<answer>5</answer>",
            f"The answer is {row.answer}.",
        ):
            assert not right(altered, row), altered


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 12 \n", "12"),
        ("so <answer> 12\n</answer>.", "12"),
        ("<answer>12</answer>, that is <answer>12 </answer>", "12"),
        ("<answer>12</answer> or <answer>13</answer>", None),
        ("<answer>12</answer> or <answer>13", "12"),
        ("<answer>12", None),
        ("12</answer>", "12</answer>"),
        ("<answer></answer>", None),
        ("  ", None),
        ("<answer>" * 200_000, None),
        ("<answer>a</answer>" * 50_000, "a"),
    ],
)
def test_the_one_answer_of_a_completion(completion: str, answer: str | None) -> None:
    assert answer_of(completion) == answer


FLIPPED = given("coin_flip", "0.65625")
HALTS = given("game_of_life_halting", "False")
SOLVED = given("gsm_symbolic", "57")
TRUTH = given("knights_knaves", "Ann is a knight, and Bob is a knave.")
LOCK = given(
    "quantum_lock",
    "A → A",
    initial_value=0,
    initial_state="red",
    target_value=2,
    buttons=[{"name": name, "type": "add", "value": 1, "active_state": "any"} for name in "AB"],
)
FOUR = given("puzzle24", "5*6*1 - 6", numbers=[5, 6, 1, 6])
COUNTED = given("countdown", "39 - 14 + 93 + 51", numbers=[39, 14, 93, 51], target=169)
NONE = given("polynomial_equations", "1.5, -2.0", real_solutions=[-2.0, 1.5])
PICKED = given("number_format", "10.004", candidates=[10.001, 10.004], solution=10.004)
GRAPH = given(
    "graph_color",
    '{"0": 1, "1": 2}',
    puzzle={"vertices": [0, 1], "edges": [[0, 1]], "num_colors": 2, "color_options": [1, 2]},
)


@pytest.mark.parametrize(
    ("row", "accepted", "refused"),
    [
        # Upstream's scorers give full marks to what stands last here.
        (FLIPPED, ["21/32", "0.6562"], ["0", "0.6", "0.656", "1", "65.625%", "1/0"]),
        (HALTS, ["False"], ["True", "x", "0"]),
        (SOLVED, ["57", "57.0"], ["-57", "57 or 58", "57 58", "57%"]),
        (
            TRUTH,
            ["Ann is a knight and Bob is a knave", "Bob is a knave, and Ann is a knight."],
            [
                "Ann is a knave, and Bob is a knave",
                "Ann is a knight, and Bob is a knave, or not",
                "Ann knight Bob knave",
            ],
        ),
        (LOCK, ["A → B", "B→B"], ["A", "A → A → B", "press A and B", "AB"]),
        (
            FOUR,
            ["(6 * 5) * 1 - 6", "-(6 - 5*6*1)", "1*6*5-6"],
            ["5*6*1", "6*4", "8+8+4+4", "10 + 10 + 5 - 1", "5*6*1 - 6 + 0*7", "24", "1*6*5-6*1", "5*6/1-6/0"],
        ),
        (COUNTED, ["93+51+39-14", "39 - (14 - 93) + 51"], ["169", "39+14+93+51", "39-14+93+51-0", "169*39/39"]),
        (NONE, ["-2.0, 1.5", "1.50, -2"], ["1.5", "1.5, -2.0, 3", "x, y", "1.5, 1.5"]),
        (PICKED, ["10.0040", "1.0004e1"], ["10.001", "10.0", "9.999"]),
        (
            GRAPH,
            ['{"1": 1, "0": 2}'],
            ['{"0": 1, "1": 1}', '{"0": 1}', '{"0": 1, "1": 2, "2": 1}', '{"0": 1, "0": 2, "1": 1}'],
        ),
    ],
    ids=lambda value: "",
)
def test_what_is_right_in_another_form_and_what_only_looks_so(
    row: Row, accepted: list[str], refused: list[str]
) -> None:
    assert [answer for answer in accepted if not right(answer, row)] == []
    assert [answer for answer in refused if right(answer, row)] == []


def test_polynomials_and_their_integrals_count_in_any_order() -> None:
    product = given("polynomial_multiplication", "6*x**2 - 3*x", polynomial_expr="3*x*(2*x - 1)", variables=["x"])
    assert all(right(answer, product) for answer in ("-3*x + 6*x**2", "6*x*x-3*x", "7*x**2 - x**2 - 3*x"))
    assert not any(right(answer, product) for answer in ("3*x*(2*x - 1)", "6*x**2 - 3*y", "6*x**3 - 3*x", "6*x**2"))
    integral = given("simple_integration", "4*X**9 - X + C", integrand="36*X**8 - 1", variable="X")
    assert all(right(answer, integral) for answer in ("-X + 4*X**9", "4*X**9 - X + 7", "C + 8*X**9/2 - X"))
    assert not any(right(answer, integral) for answer in ("4*X**9 + C", "4*X**9 - X + C*X", "4*x**9 - x", "36*X**8"))


ATTACKS = (
    "__import__('os').system('touch owned')",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "9**9**9**9",
    "x**99999999",
    "(" * 3000 + "1" + ")" * 3000,
    "1e999999999",
    "1/0",
    "NaN",
    "\u0661\u0662",
    "exec('raise SystemExit')",
    '{"a": ' * 2000,
    "[" * 100_000,
    "\0",
    "9" * 1_000_000,
)


@pytest.mark.parametrize("name", SAMPLE)
def test_nothing_that_a_model_writes_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = made(name, 1)
    right(row.answer, row)  # what is imported is imported now

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError(f"{arguments[0]!r:.200} was to be run")

    entry = json.loads((row.kept or {})["entry"])
    wrong = [*ATTACKS, *(f"<answer>{attack}</answer>" for attack in ATTACKS), f"{row.answer};{ATTACKS[0]}"]
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "eval", refuse)
        patched.setattr("sympy.parsing.sympy_parser.eval_expr", refuse)
        for attack in wrong:
            assert not right(attack, row), attack[:100]
    assert json.loads((row.kept or {})["entry"]) == entry


def test_a_row_that_kept_no_entry_is_a_fault_of_its_source() -> None:
    row = Row("1", "toy", [], [], "7", "", "toy.jsonl:4", "a")
    assert right("7", row)
    with pytest.raises(DataError, match=r"row 1 \(toy.jsonl:4\) has no 'entry'; its source needs keep: \[entry\]"):
        right("8", row)


def test_the_settings_that_made_a_row_judge_it() -> None:
    """decimal_arithmetic lets an answer be off by one in the last place that its settings give."""
    (coarse,) = made("decimal_arithmetic", 1, max_num_decimal_places=2, min_num_decimal_places=2, precision=5)
    own = Fraction(coarse.answer)
    assert right(str(float(own) + 0.01), coarse)
    assert not right(str(float(own) + 0.02), coarse)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2*3", 7),
        ("(1 + 2)*3", 9),
        ("2 - 3 - 4", -5),
        ("8/3/2", Fraction(4, 3)),
        ("--2", 2),
        ("2*-3", -6),
        ("1/(1 - 2/3)", 3),
    ],
)
def test_expressions_are_worked_out_exactly(text: str, value: int | Fraction) -> None:
    assert Expression(text).value() == value


@pytest.mark.parametrize("text", ["", "1 2", "1 +", "(1", "1)", "2**3", "x", "1.5", "()", "²", "1,000"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a number|left over|isn't closed"):
        Expression(text).value()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("3*x**2/4 - y", {(("x", 2),): Fraction(3, 4), (("y", 1),): -1}),
        ("-x + 2 + x", {(): 2}),
        ("x*y*x - 2", {(("x", 2), ("y", 1)): 1, (): -2}),
        ("x**0", {(): 1}),
        ("0*x", {}),
    ],
)
def test_polynomials_are_read_term_by_term(text: str, terms: dict[Any, Any]) -> None:
    assert polynomial(text) == terms


@pytest.mark.parametrize("text", ["x y", "2x", "x**", "1/x", "x/0", "(x)", "x**-1", "+", "*x", "x + + y"])
def test_what_is_no_polynomial(text: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        polynomial(text)


def test_every_scorer_that_is_asked_is_of_a_data_set_that_there_is() -> None:
    from reasoning_gym.factory import DATASETS

    from pipelines.tasks.reasoning import _ALLOWED, _UNCHECKED

    assert set(_UNCHECKED) <= set(_ALLOWED) <= set(DATASETS)
    assert not set(_ALLOWED) & set(generator.REFUSED)
    assert set(generator.REFUSED) <= set(DATASETS)
