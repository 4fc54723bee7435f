"""GRPO's arithmetic from the papers, and how far TRL's trainer, built as the stage builds it, is from it.

The reference is numpy in float64. The trainer gets random answers with random rewards; its adapter is moved between the
old policy and the new one, so that ratios differ from 1 and are clipped. `python -m benchmarks.grpo_reference`.
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.compose import compose
from pipelines.config.paths import CONF, PROJECT
from pipelines.dataset.row import Row

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Recipe = Mapping[str, Any]  # the fields of `trl.GRPOConfig` that `DECIDING` lists

GROUP, GROUPS, MICRO_BATCHES, LIMIT = 8, 10, 2, 12  # answers to a prompt, prompts, their parts, tokens of an answer
TEMPERATURE = 0.8
VOCABULARY = 96
WEIGHTS = {"correct": 1.0, "shape": 0.25}
# How far the adapter goes between the old policy and the new one: within every clip, and far beyond.
MOVES = (1e-4, 3e-3, 3e-2, 0.1)
DECIDING = (
    *("loss_type", "scale_rewards", "importance_sampling_level", "epsilon", "epsilon_high", "beta"),
    *("use_bias_correction_kl", "mask_truncated_completions", "max_completion_length"),
)
KL = "grpo.trainer.beta=0.04"
VARIANTS: tuple[tuple[str, ...], ...] = ((), (KL,), (KL, "++grpo.trainer.use_bias_correction_kl=false"))
EQUAL = (0.0, 1.0, None, 1.0625, -0.5)
OFF_GRID = (0.1, 0.7, 1.1)  # no sums of powers of 2, so that float32 rounds the mean of equal ones
PARTS = ("advantages", "loss", "kl", "clips")
COUNTS = ("clipped_low", "clipped_high")


# --- the reference ------------------------------------------------------------------------------


def advantages(rewards: Sequence[Sequence[float | None]], scale: str) -> Array:
    """What each answer is worth against its group; shape [groups, answers].

    "group": (r - mean) / (std + 1e-4), DeepSeekMath (Shao et al. 2024, arXiv:2402.03300), section 4.1.2, with TRL's
    sample deviation and its 1e-4. "none": r - mean, Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), section 3.2.
    An answer without a reward is in no mean and has 0.
    """
    table = np.array([[np.nan if r is None else r for r in group] for group in rewards], dtype=np.float64)
    found = np.zeros_like(table)
    for values, out in zip(table, found, strict=True):
        known = ~np.isnan(values)
        if known.sum() > 1:
            out[known] = values[known] - values[known].mean()
            if scale == "group":
                out[known] /= values[known].std(ddof=1) + 1e-4
    return found


def ratios(logps: Array, old_logps: Array, mask: Flags, recipe: Recipe) -> Array:
    """pi / pi_old of every token: DeepSeekMath, equation 3; GSPO (Zheng et al. 2025, arXiv:2507.18071), equation 7:
    the geometric mean over the answer, the same for all of its tokens."""
    logs = np.where(mask, logps - old_logps, 0.0)
    return np.exp(_of_answer(logs, mask) if recipe["importance_sampling_level"] == "sequence" else logs)


def _of_answer(values: Array, mask: Flags) -> Array:
    """Each answer's mean over its tokens, at every token."""
    count = np.maximum(mask.sum(1, keepdims=True), 1)
    return np.broadcast_to(np.where(mask, values, 0.0).sum(1, keepdims=True) / count, mask.shape)


def bounds(recipe: Recipe) -> tuple[float, float]:
    """What a ratio is held between; from above by epsilon too where the recipe has no `epsilon_high`."""
    low, high = recipe["epsilon"], recipe["epsilon_high"]
    if recipe["loss_type"] == "cispo":
        return 0.0, high
    return 1 - low, 1 + (low if high is None else high)


def clipped(ratio: Array, worth: Array, mask: Flags, recipe: Recipe) -> tuple[Flags, Flags]:
    """The tokens that the lower and the upper clip take out of the objective (of CISPO: whose weight is cut).

    A lower clip binds where the advantage is negative, an upper one where it is positive: DeepSeekMath, equation 3; an
    upper bound of its own: DAPO (Yu et al. 2025, arXiv:2503.14476), equation 10. CISPO cuts the weight from above
    whatever the sign: MiniMax-M1 (MiniMax 2025, arXiv:2506.13585), equation 5, where TRL's `epsilon_high` is the bound
    itself, as in ScaleRL (Khatri et al. 2025, arXiv:2510.13786), and not 1 + epsilon_high.
    """
    low, high = bounds(recipe)
    either = recipe["loss_type"] == "cispo"
    return mask & (worth < 0) & (ratio < low), mask & (either | (worth > 0)) & (ratio > high)


def divergence(logps: Array, ref_logps: Array, ratio: Array, mask: Flags, recipe: Recipe) -> tuple[Array, Array]:
    """Each token's estimate of KL(pi, pi_ref), and the derivative of an answer's sum of them by `logps`.

    pi_ref / pi - log(pi_ref / pi) - 1: DeepSeekMath, equation 4 (Schulman 2020's k3). With `use_bias_correction_kl`
    times the ratio: DeepSeek-V3.2 (2025, arXiv:2512.02556), section 3.1.
    """
    logs = ref_logps - logps
    k3, slope = np.exp(logs) - logs - 1, 1 - np.exp(logs)
    if not recipe["use_bias_correction_kl"]:
        return k3, slope
    through_ratio = _of_answer(k3, mask) if recipe["importance_sampling_level"] == "sequence" else k3
    return ratio * k3, ratio * (slope + through_ratio)


def token_weights(mask: Flags, recipe: Recipe) -> Array:
    """What a token counts for in the loss of its batch.

    grpo: the mean over answers of the mean over each one's tokens, DeepSeekMath, equation 3 (and GSPO, equation 5).
    dapo, cispo: the mean over all tokens, DAPO, equation 12, MiniMax-M1, equation 4. bnpo: the same over a micro-batch,
    as TRL documents it. dr_grpo: the sum, over answers times a constant, the most tokens that an answer may have, Dr.
    GRPO, section 3.2. `mask` leaves out cut-off answers where the recipe does: DAPO, section 3.4.
    """
    of = {
        "grpo": lambda: len(mask) * np.maximum(mask.sum(1, keepdims=True), 1),
        "dr_grpo": lambda: len(mask) * recipe["max_completion_length"],
    } | dict.fromkeys(("bnpo", "dapo", "cispo"), lambda: max(mask.sum(), 1))
    return np.asarray(mask / of[recipe["loss_type"]](), dtype=np.float64)


def loss(
    logps: Array, old_logps: Array, ref_logps: Array | None, advantages: Array, mask: Flags, recipe: Recipe
) -> tuple[float, Array]:
    """The loss of one batch, and its derivative by `logps`; all of shape [answers, tokens], `advantages` [answers].

    Clipped surrogate: -min(r A, clip(r) A), DeepSeekMath, equation 3. CISPO: -sg(min(r, bound)) A log pi, MiniMax-M1,
    equation 4. Both plus beta times the divergence. Over the tokens of an answer `token_weights` is one number, so the
    derivative of a ratio of sequences is what it is of tokens.
    """
    worth, weights = np.broadcast_to(advantages[:, None], mask.shape), token_weights(mask, recipe)
    ratio = ratios(logps, old_logps, mask, recipe)
    low, high = clipped(ratio, worth, mask, recipe)
    held = np.where(low, bounds(recipe)[0], np.where(high, bounds(recipe)[1], ratio))
    if recipe["loss_type"] == "cispo":
        each, slope = -held * worth * logps, -held * worth
    else:
        each, slope = -held * worth, np.where(low | high, 0.0, -ratio * worth)
    if recipe["beta"] and ref_logps is not None:
        kl, kl_slope = divergence(logps, ref_logps, ratio, mask, recipe)
        each, slope = each + recipe["beta"] * kl, slope + recipe["beta"] * kl_slope
    return float(np.where(mask, weights * each, 0.0).sum()), np.where(mask, weights * slope, 0.0)


# --- the trainer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What one generation made: token ids, and each answer's value in every part of the reward (None: no verdict)."""

    prompts: list[list[int]]
    answers: list[list[int]]
    parts: Mapping[str, list[float | None]]
    truncated: Flags

    @property
    def rewards(self) -> list[list[float | None]]:
        """The weighted sum, by group."""
        columns = (self.parts[name] for name in WEIGHTS)
        whole = [
            None if None in values else float(np.dot(list(WEIGHTS.values()), values))
            for values in zip(*columns, strict=True)
        ]
        return [whole[start : start + GROUP] for start in range(0, len(whole), GROUP)]


def random_batch(rng: np.random.Generator, end: int) -> Batch:
    """Groups of random answers of random lengths, a fifth cut off, a tenth without a verdict.

    Rewards are multiples of 2^-8, as float32 adds them exactly.
    """
    count = GROUP * GROUPS

    def tokens(least: int, most: int) -> list[int]:
        return [int(t) for t in rng.integers(8, VOCABULARY, rng.integers(least, most + 1))]

    prompts = [prompt for prompt in (tokens(2, 9) for _ in range(GROUPS)) for _ in range(GROUP)]
    truncated = rng.random(count) < 0.2
    answers = [tokens(LIMIT, LIMIT) if cut else [*tokens(0, LIMIT - 1), end] for cut in truncated]
    failed = rng.random(count) < 0.1
    parts: dict[str, list[float | None]] = {
        "correct": [float(v) for v in rng.integers(0, 2, count)],
        "shape": [float(v) / 64 for v in rng.integers(0, 65, count)],
    }
    return Batch(
        prompts,
        answers,
        {name: [None if no else v for no, v in zip(failed, values, strict=True)] for name, values in parts.items()},
        truncated,
    )


def recipe_names() -> list[str]:
    """Every shipped recipe that GRPOTrainer trains."""
    files = (CONF / "recipe").glob("*.yaml")
    return sorted(path.stem for path in files if "asynchronous: true" not in path.read_text(encoding="utf-8"))


def build_model(folder: Path) -> Path:
    """A Qwen3 of 30 thousand random parameters with the shipped tokenizer, in `folder`."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,  # all that the answers use
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,  # tokens of unlike likelihood
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Driven:
    """The stage's trainer for one recipe in float64, fed with given answers and rewards.

    Four optimizer steps share a generation, so that the trainer keeps the old policy's likelihoods.
    """

    def __init__(self, recipe: str, model: Path, work: Path, *overrides: str) -> None:
        from pipelines.policy.base import load_tokenizer
        from pipelines.policy.reinforce import Asked, build_trainer, load_policy, settings_of

        logging.getLogger("trl").setLevel(logging.ERROR)  # it shows every answer that has no reward
        config = compose(
            [
                *(f"recipe={recipe}", f"model.id={model}", "adapter.peft.r=4", "grpo.start=base"),
                *(f"grpo.trainer.num_generations={GROUP}", f"grpo.trainer.max_completion_length={LIMIT}"),
                f"grpo.trainer.per_device_train_batch_size={GROUP * GROUPS // MICRO_BATCHES}",
                f"grpo.trainer.gradient_accumulation_steps={MICRO_BATCHES}",
                *("grpo.trainer.num_iterations=4", "grpo.trainer.save_strategy=no"),
                *(f"grpo.trainer.temperature={TEMPERATURE}", *overrides),
            ]
        ).config
        settings, tokenizer = settings_of(config, work), load_tokenizer(config.model)
        self.recipe: Recipe = {name: getattr(settings, name) for name in DECIDING}
        row = Row("row1", "task", [{"role": "user", "content": "-"}], [], "", "", "rows:1", "g")
        rewards = [self._part(name) for name in WEIGHTS]
        asked = Asked([row], rewards, list(WEIGHTS.values()), None)
        self.trainer = build_trainer(config, settings, load_policy(config, settings, None), tokenizer, asked, work)
        self.trainer.rollout_func = lambda prompts, trainer: {
            "prompt_ids": self.batch.prompts,
            "completion_ids": self.batch.answers,
            "logprobs": None,
        }
        self.trainer.current_gradient_accumulation_steps = MICRO_BATCHES  # its loop sets it
        self.model = self.trainer.model.double().train()
        self.end = tokenizer.eos_token_id
        self.batch: Batch

    def _part(self, name: str) -> Any:
        def values(**_: Any) -> list[float | None]:
            return self.batch.parts[name]

        values.__name__ = name
        return values

    def generate(self, batch: Batch) -> dict[str, Any]:
        """The trainer's tensors for the batch: its advantages, masks, old and reference likelihoods."""
        self.batch = batch
        asked = [{"prompt": [{"role": "user", "content": "-"}], "row": 0} for _ in batch.answers]
        found: dict[str, Any] = self.trainer._generate_and_score_completions(asked)
        return found

    def step(self, made: dict[str, Any]) -> tuple[float, Array, dict[str, float]]:
        """The loss of one optimizer step over its micro-batches, its gradient, and what the trainer logs of it."""
        from trl.trainer.utils import split_tensor_dict

        self.model.zero_grad()
        self.trainer._metrics["train"].clear()
        total = 0.0
        for part in split_tensor_dict(made, MICRO_BATCHES):
            value = self.trainer._compute_loss(self.model, part)
            value.backward()
            total += value.item()
        names = {"kl": "kl", "clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high", "cispo_clip_ratio": "high"}
        logged = self.trainer._metrics["train"]
        return total, self.gradient(), {names[k]: float(np.mean(v)) for k, v in logged.items() if k in names}

    def gradient(self) -> Array:
        """Of all that is trained, in one row."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return np.concatenate([p.grad.numpy().ravel() for p in trained])

    def move(self, rng: np.random.Generator, scale: float, *, afresh: bool = False) -> None:
        """Noise on the adapter's second matrix, instead of it where `afresh`."""
        import torch

        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    noise = torch.from_numpy(rng.normal(0.0, scale, parameter.shape))
                    parameter.copy_(noise if afresh else parameter + noise)

    def likelihoods(self, batch: Batch) -> Any:
        """log pi of the answers' tokens from plain logits, [answers, tokens]; causal, so padded behind and unmasked.

        Norms and rotations are float32 in any Qwen3, and a rotation's rounding depends on the position: each prompt
        begins where the trainer, which pads in front, has it.
        """
        import torch

        rows = [p + a for p, a in zip(batch.prompts, batch.answers, strict=True)]
        width = max(map(len, rows))
        longest = max(map(len, batch.prompts))
        places = torch.tensor([[longest - len(prompt)] for prompt in batch.prompts]) + torch.arange(width)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        logits = self.model(input_ids=ids, position_ids=places).logits
        logs = (logits / TEMPERATURE).log_softmax(-1)
        found = torch.zeros(len(rows), max(map(len, batch.answers)), dtype=torch.float64)
        for number, (prompt, answer) in enumerate(zip(batch.prompts, batch.answers, strict=True)):
            before = torch.arange(len(answer)) + len(prompt) - 1
            found[number, : len(answer)] = logs[number, before, torch.tensor(answer)]
        return found


# --- the two compared ---------------------------------------------------------------------------


def compare(driven: Driven, batch: Batch, rng: np.random.Generator, move: float) -> dict[str, float]:
    """Each part's largest difference over one batch (the gradient's over its largest entry), and the clipped tokens."""
    import torch

    recipe = driven.recipe
    driven.move(rng, 1e-2, afresh=True)
    made = driven.generate(batch)
    with torch.no_grad():
        old = driven.likelihoods(batch).numpy()
        with driven.model.disable_adapter():
            ref = driven.likelihoods(batch).numpy()
    driven.move(rng, move)
    value, gradient, logged = driven.step(made)

    worth = advantages(batch.rewards, recipe["scale_rewards"]).ravel()
    mask = np.arange(old.shape[1]) < np.array([len(answer) for answer in batch.answers])[:, None]
    if recipe["mask_truncated_completions"]:
        mask &= ~batch.truncated[:, None]
    driven.model.zero_grad()
    new = driven.likelihoods(batch)
    logps = new.detach().numpy()
    expected, slope = _of_step(logps, old, ref, worth, mask, recipe)
    new.backward(torch.from_numpy(slope))

    ratio = ratios(logps, old, mask, recipe)
    low, high = clipped(ratio, np.broadcast_to(worth[:, None], mask.shape), mask, recipe)
    return {
        "advantages": float(np.abs(made["advantages"].numpy() - worth).max()),
        "loss": abs(value - expected),
        "gradient": float(np.abs(gradient - driven.gradient()).max() / np.abs(gradient).max()),
        **_logged(logged, divergence(logps, ref, ratio, mask, recipe)[0], (low, high), worth, mask, recipe),
        "clipped_low": float(low.sum()),
        "clipped_high": float(high.sum()),
    }


def _of_step(*given: Any) -> tuple[float, Array]:
    """`loss` of a whole step. How it is cut must not matter, but to bnpo: the mean of its micro-batches' losses."""
    *tables, recipe = given
    cuts = MICRO_BATCHES if recipe["loss_type"] == "bnpo" else 1
    logps, old, ref, worth, mask = (np.split(table, cuts) for table in tables)
    parts = [loss(logps[n], old[n], ref[n], worth[n], mask[n], recipe) for n in range(cuts)]
    return sum(p[0] for p in parts) / cuts, np.concatenate([p[1] for p in parts]) / cuts


def _logged(
    logged: Mapping[str, float], kl: Array, clips: tuple[Flags, Flags], worth: Array, mask: Flags, recipe: Recipe
) -> dict[str, float]:
    """What the trainer logs: means over each micro-batch's tokens (its answers, where these have one ratio)."""
    low, high = clips
    if recipe["loss_type"] == "cispo":
        high = high & (worth > 0)[:, None]  # it counts these only
    counted = mask
    if recipe["importance_sampling_level"] == "sequence":
        low, high, counted = low[:, :1], high[:, :1], np.ones((len(mask), 1), dtype=bool)

    def mean(values: Array | Flags, over: Flags) -> float:
        pairs = zip(np.split(values, MICRO_BATCHES), np.split(over, MICRO_BATCHES), strict=True)
        return float(np.mean([v[m].mean() for v, m in pairs]))

    expected = {"low": mean(low, counted), "high": mean(high, counted)}
    found = {"clips": max(abs(logged[name] - expected[name]) for name in ("low", "high") if name in logged)}
    return found | ({"kl": abs(logged["kl"] - mean(kl, mask))} if recipe["beta"] else {})


def zero_gradient(driven: Driven, rng: np.random.Generator, values: tuple[float | None, ...]) -> float:
    """The largest entry of the gradient where all of a group's answers are worth the same, one of `values`."""
    made = random_batch(rng, driven.end)
    each = [values[number // GROUP % len(values)] for number in range(len(made.answers))]
    zeros = [None if v is None else 0.0 for v in each]
    batch = Batch(made.prompts, made.answers, {"correct": each, "shape": zeros}, made.truncated)
    driven.move(rng, 1e-2, afresh=True)
    found = driven.generate(batch)
    driven.move(rng, 1e-2)
    return float(np.abs(driven.step(found)[1]).max())


def compare_recipe(driven: Driven, moves: Sequence[float] = MOVES, seed: int = 0) -> dict[str, float]:
    """`compare` over a batch for each move: the largest differences, and the sums of the clipped tokens."""
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    for move in moves:
        for name, value in compare(driven, random_batch(rng, driven.end), rng, move).items():
            found[name] = found.get(name, 0.0) + value if name in COUNTS else max(found.get(name, 0.0), value)
    return found


def largest(found: Mapping[str, float]) -> float:
    """The largest difference that `compare` found, but for the gradient's."""
    return max(found[name] for name in PARTS if name in found)


def measure() -> dict[str, float]:
    """Every shipped recipe as it is, with the divergence, and with the divergence uncorrected.

    A recipe's name has its largest difference, `max_diff` that of all, `gradient` the largest of a gradient over its
    largest entry; `zero_gradient` and `equal_off_grid` the largest entry of the gradient of groups whose answers are
    worth the same: one of `EQUAL`, one of `OFF_GRID`.
    """
    result = dict.fromkeys(("max_diff", "gradient", "groups", *COUNTS, "zero_gradient", "equal_off_grid"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / "model")
        for number, name in enumerate(recipe_names()):
            for variant, overrides in enumerate(VARIANTS):
                driven = Driven(name, model, Path(folder) / "work", *overrides)
                found = compare_recipe(driven, seed=len(VARIANTS) * number + variant)
                result[name] = max(result.get(name, 0.0), largest(found))
                result["gradient"] = max(result["gradient"], found["gradient"])
                result["groups"] += len(MOVES) * GROUPS
                for count in COUNTS:
                    result[count] += found[count]
                if not driven.recipe["beta"]:
                    for key, values in (("zero_gradient", EQUAL), ("equal_off_grid", OFF_GRID)):
                        flat = zero_gradient(driven, np.random.default_rng(number), values)
                        result[key] = max(result[key], flat)
    result["max_diff"] = max(result[name] for name in recipe_names())
    return result


def main() -> None:
    """Prints the table, and as the last line one JSON object."""
    result = measure()
    for name, value in result.items():
        print(f"  {name:16} {value:12.6g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
