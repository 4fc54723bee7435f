"""Advantages, clips and divergence are the papers', in the trainer that the stage builds, for every recipe."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import grpo_reference as reference
from benchmarks.grpo_reference import EQUAL, VARIANTS, Driven, compare_recipe, largest, recipe_names, zero_gradient
from pipelines.config.paths import CONF

pytestmark = pytest.mark.usefixtures("one_thread")

Drive = Callable[..., Driven]
# Another trainer of TRL's has the asynchronous recipe's loss, see test_asynchronous.py.
SYNCHRONOUS = [
    name for name in recipe_names() if "asynchronous: true" not in (CONF / f"recipe/{name}.yaml").read_text("utf-8")
]
PLAIN = {
    "loss_type": "grpo",
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "use_bias_correction_kl": False,
    "mask_truncated_completions": False,
    "max_completion_length": 4,
}
# Two answers: of two tokens with ratios 1.5 and 1.1 and advantage 1, of one with ratio 0.5 and advantage -1.
OLD = np.zeros((2, 2))
NEW = np.log([[1.5, 1.1], [0.5, 1.0]])
MASK = np.array([[True, True], [True, False]])
WORTH = np.array([1.0, -1.0])


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    folder = tmp_path_factory.mktemp("reference")
    model = reference.build_model(folder / "model")
    return lambda recipe, *overrides: Driven(recipe, model, folder / "work", *overrides)


def test_advantages_by_hand() -> None:
    # 0, 0, 1, 1: the mean is 0.5, the sample deviation sqrt(4 * 0.25 / 3).
    scaled = 0.5 / (0.5773502691896257 + 1e-4)
    found = reference.advantages([[0.0, 0.0, 1.0, 1.0]], "group")
    assert found[0] == pytest.approx([-scaled, -scaled, scaled, scaled], abs=1e-12)
    assert reference.advantages([[0.0, 0.0, 1.0, 3.0]], "none")[0] == pytest.approx([-1.0, -1.0, 0.0, 2.0])


def test_answer_without_a_verdict_is_in_no_mean() -> None:
    rewards: list[list[float | None]] = [[1.0, None, 0.0, None], [None, None, None, 1.0], [None] * 4]
    # Of 1 and 0 the mean is 0.5 and the sample deviation sqrt(0.5); one scored answer has nothing to be compared with.
    scaled = 0.5 / (0.7071067811865476 + 1e-4)
    found = reference.advantages(rewards, "group")
    assert found.tolist() == pytest.approx(np.array([[scaled, 0, -scaled, 0], [0] * 4, [0] * 4]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # -(1.28 + 1.1) / 2 of the first answer, +0.8 of the second; the mean over answers, ...
        ({}, (-1.19 + 0.8) / 2),
        # ... over all three tokens, ...
        ({"loss_type": "dapo"}, (-2.38 + 0.8) / 3),
        ({"loss_type": "bnpo"}, (-2.38 + 0.8) / 3),
        # ... over two answers of at most four tokens.
        ({"loss_type": "dr_grpo"}, (-2.38 + 0.8) / 8),
        # No upper bound of its own: 1.2 in place of 1.28.
        ({"epsilon_high": None}, (-1.15 + 0.8) / 2),
        # The first answer's ratio is sqrt(1.5 * 1.1) = 1.2845, over 1.28; the second's 0.5, under 0.8.
        ({"importance_sampling_level": "sequence"}, (-1.28 + 0.8) / 2),
        # 1.5 held at 1.4: -(1.4 log 1.5 + 1.1 log 1.1) of the first, +0.5 log 0.5 of the second.
        (
            {"loss_type": "cispo", "epsilon_high": 1.4},
            (-1.4 * 0.4054651081 - 1.1 * 0.0953101798 - 0.5 * 0.6931471806) / 3,
        ),
    ],
)
def test_losses_by_hand(changes: dict[str, object], expected: float) -> None:
    found, _ = reference.loss(NEW, OLD, None, WORTH, MASK, PLAIN | changes)
    assert found == pytest.approx(expected, abs=1e-9)


def test_one_clipped_token_a_side_has_no_gradient() -> None:
    _, slope = reference.loss(NEW, OLD, None, WORTH, MASK, PLAIN)
    # Only the ratio 1.1 is within the bounds: a half of its answer, a quarter of the batch.
    assert slope.tolist() == [[0.0, pytest.approx(-1.1 / 4)], [0.0, 0.0]]
    low, high = reference.clipped(np.exp(NEW), np.array([[1.0, 1.0], [-1.0, -1.0]]), MASK, PLAIN)
    assert high.tolist() == [[True, False], [False, False]]
    assert low.tolist() == [[False, False], [True, False]]


def test_ratio_beyond_a_bound_that_does_not_bind_is_kept() -> None:
    # A bad answer made likelier, a good one made less likely: both are pushed back in full.
    found, slope = reference.loss(NEW, OLD, None, -WORTH, MASK, PLAIN)
    assert found == pytest.approx((1.3 - 0.5) / 2)
    assert slope.tolist() == [[pytest.approx(1.5 / 4), pytest.approx(1.1 / 4)], [pytest.approx(-0.5 / 2), 0.0]]


def test_divergence_by_hand() -> None:
    logps, ref = np.log([[0.5]]), np.log([[0.25]])
    ratio, mask = np.array([[2.0]]), np.array([[True]])
    # pi_ref / pi = 1 / 2: 1 / 2 + log 2 - 1.
    plain, slope = reference.divergence(logps, ref, ratio, mask, PLAIN)
    assert (plain.item(), slope.item()) == pytest.approx((0.1931471806, 0.5))
    # Corrected: twice that, whose derivative is 2 * (1 / 2 + 0.1931471806) = 2 log 2.
    corrected, slope = reference.divergence(logps, ref, ratio, mask, PLAIN | {"use_bias_correction_kl": True})
    assert (corrected.item(), slope.item()) == pytest.approx((0.3862943611, 1.3862943611))


@pytest.mark.parametrize("changes", [{}, {"importance_sampling_level": "sequence"}, {"use_bias_correction_kl": True}])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_derivative_is_that_of_the_loss(changes: dict[str, object], loss_type: str) -> None:
    rng = np.random.default_rng(0)
    logps, old, ref = (rng.normal(-2.0, 0.2, (6, 5)) for _ in range(3))
    mask = np.arange(5) < np.array([[5], [1], [3], [0], [4], [5]])
    recipe = PLAIN | {"loss_type": loss_type, "beta": 0.3} | changes
    advantages = rng.normal(size=6)
    _, slope = reference.loss(logps, old, ref, advantages, mask, recipe)
    for place in np.ndindex(6, 5):
        step = np.zeros((6, 5))
        step[place] = 1e-6
        above, below = (reference.loss(logps + s, old, ref, advantages, mask, recipe)[0] for s in (step, -step))
        assert (above - below) / 2e-6 == pytest.approx(slope[place], abs=1e-7)


@pytest.mark.parametrize("overrides", VARIANTS, ids=("shipped", "kl", "kl_uncorrected"))
@pytest.mark.parametrize("recipe", SYNCHRONOUS)
def test_trainer_agrees(drive: Drive, recipe: str, overrides: tuple[str, ...]) -> None:
    driven = drive(recipe, *overrides)
    found = compare_recipe(driven, moves=(3e-3, 0.1))
    assert largest(found) < 1e-6
    assert found["gradient"] < 1e-5
    assert found["clipped_high"] > 0
    assert found["clipped_low"] > 0 or recipe == "cispo"
    assert ("kl" in found) == bool(driven.recipe["beta"])
    if not driven.recipe["beta"]:
        # Right, wrong, no verdict, and sums of parts: nothing is to be learnt from any.
        assert zero_gradient(driven, np.random.default_rng(1), EQUAL) == 0.0
        assert zero_gradient(driven, np.random.default_rng(1), (None,)) == 0.0
        assert zero_gradient(driven, np.random.default_rng(1), (0.0, 2.0)) == 0.0


def test_on_policy_every_ratio_is_one(drive: Drive) -> None:
    """As shipped: one step a generation, so that the trainer keeps no old likelihoods."""
    driven = drive("dr_grpo")
    driven.trainer.num_iterations = 1
    found = compare_recipe(driven, moves=(0.0,))
    assert "old_per_token_logps" not in driven.generate(driven.batch)
    assert largest(found) < 1e-6
    assert found["clipped_low"] == found["clipped_high"] == 0


def test_new_recipe_needs_a_reference() -> None:
    assert SYNCHRONOUS == ["cispo", "dapo", "dr_grpo", "grpo", "gspo"]
    with pytest.raises(KeyError, match="sapo"):
        reference.token_weights(MASK, PLAIN | {"loss_type": "sapo"})
