"""A value that is not finite stops training within its step, named; a loss that jumps is told with its rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from benchmarks.compute_equivalence import build, config_of, examples
from pipelines.config.schema import Config
from pipelines.config.watching import Alarm, LossWatch
from pipelines.errors import Refused, UserError
from pipelines.policy.checkpoints import newest_checkpoint
from pipelines.policy.fit import Course, fit
from pipelines.policy.spikes import Spikes

pytestmark = pytest.mark.usefixtures("one_thread")

# Nothing is logged before the end: it is the steps that are looked at.
SAVING = ["sft.trainer.save_strategy=steps", "sft.trainer.save_steps=1", "sft.trainer.logging_steps=100"]
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"


@pytest.fixture
def made(small_model: Path, tmp_path: Path) -> Callable[..., Any]:
    return lambda *overrides: build(config(small_model, *overrides), tmp_path)


def config(model: Path, *overrides: str) -> Config:
    return config_of(4, 2, [f"model.id={model}", *SAVING, *overrides])


class At(TrainerCallback):
    """Does something right before a step's forward."""

    def __init__(self, step: int, does: Callable[[], object]) -> None:
        self.step, self.does = step, does

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            self.does()


def stopped(trainer: Any) -> str:
    with pytest.raises(UserError) as error:
        fit(trainer, lambda values, step: None, Course(8, {}))
    assert error.value.exit_code == 2
    return str(error.value)


def only_sound_checkpoints(trainer: Any, newest: int) -> None:
    found = newest_checkpoint(Path(trainer.args.output_dir))
    assert found is not None
    assert found.name == f"checkpoint-{newest}"
    for folder in found.parent.glob("checkpoint-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "adapter_model.safetensors").values())


def test_a_loss_that_is_no_number_is_told_with_its_rows(made: Callable[..., Any]) -> None:
    trainer = made()
    # One token of one row: its loss alone is not finite, and only where the row is in the step.
    row = next(e for e in examples() if sum(e.input_ids[0] in other.input_ids for other in examples()) == 1)
    embedding = trainer.model.get_input_embeddings()
    embedding.register_forward_hook(
        lambda module, given, out: out.masked_fill((given[0] == row.input_ids[0])[..., None], torch.nan)
    )
    said = stopped(trainer)
    assert "loss (rows " in said
    assert row.row_id in said
    assert said.count("row-") == 4, "the rows of its micro-batch alone"
    step = int(said.split(":")[0].removeprefix("step "))
    assert f"checkpoint-{step}" not in [path.name for path in Path(trainer.args.output_dir).glob("*")]


def test_a_gradient_is_looked_at_before_it_is_clipped(made: Callable[..., Any]) -> None:
    trainer = made()
    parameter = dict(trainer.model.named_parameters())[QUERY]
    trainer.add_callback(At(3, lambda: parameter.register_hook(lambda grad: grad * torch.inf)))
    said = stopped(trainer)
    assert said.startswith(f"step 3: gradient of {QUERY} (rows row-")
    assert said.count("row-") == 8
    only_sound_checkpoints(trainer, 2)


def test_weights_are_looked_at_before_they_are_saved(made: Callable[..., Any]) -> None:
    trainer = made()
    parameter = dict(trainer.model.named_parameters())[QUERY]

    def broken(optimizer: Any, *_: object) -> None:
        parameter.data[0, 0] = torch.nan

    trainer.add_callback(At(3, lambda: trainer.optimizer.optimizer.register_step_post_hook(broken)))
    assert stopped(trainer).startswith(f"step 3: weights of {QUERY} (rows row-")
    only_sound_checkpoints(trainer, 2)


def test_weights_that_were_broken_before_are_told_before_a_step(made: Callable[..., Any]) -> None:
    trainer = made()
    dict(trainer.model.named_parameters())[QUERY].data[0, 0] = torch.nan
    assert "weights of " + QUERY + " are not finite before a step" in stopped(trainer)
    assert not list(Path(trainer.args.output_dir).glob("*"))


def watch(limit: float | None = 10.0, window: int = 5, stop: bool = False) -> LossWatch:
    return LossWatch(window=window, loss_spike=Alarm(limit=limit, stop=stop))


def spiked(losses: list[float], settings: LossWatch) -> list[int]:
    spikes = Spikes(settings, lambda records: None, "sft")
    return [step for step, loss in enumerate(losses) if spikes.observe(step, loss) is not None]


def test_a_spike_is_over_the_median_by_so_many_deviations() -> None:
    # Median 2.0, median absolute deviation 0.1: ten scaled ones are 1.4826 over it.
    before = [1.8, 1.9, 2.0, 2.1, 2.2]
    assert spiked([*before, 3.48], watch()) == []
    assert spiked([*before, 3.49], watch()) == [5]
    assert spiked([*before, 0.1], watch()) == []
    assert spiked([*before[:4], 30.0], watch()) == [], "a window has to be full"
    assert spiked([*before, 30.0], watch(limit=None)) == []
    # Equal losses deviate by nothing: a fiftieth of them counts instead.
    assert spiked([2.0] * 5 + [2.39], watch()) == []
    assert spiked([2.0] * 5 + [2.41], watch()) == [5]


def test_one_spike_hides_no_other() -> None:
    assert spiked([1.8, 1.9, 2.0, 2.1, 2.2, 30.0, 2.0, 31.0], watch()) == [5, 7]


@pytest.mark.parametrize("packing", [False, True])
def test_a_spike_is_told_with_the_rows_of_its_step(made: Callable[..., Any], packing: bool) -> None:
    more = ["sft.trainer.packing=true", "sft.trainer.max_length=64", "sft.trainer.train_sampling_strategy=random"]
    trainer = made(*(more if packing else []))
    batches: list[Any] = []
    inner = trainer.training_step

    def kept(model: Any, inputs: Any, *rest: Any) -> Any:
        batches.append(inputs)
        return inner(model, inputs, *rest)

    trainer.training_step = kept
    logged: list[tuple[dict[str, float], int]] = []
    tables: list[Any] = []
    head = trainer.model.get_base_model().model.norm
    between: list[int] = []
    loud: list[Any] = []

    def louder() -> None:
        between.append(len(batches))
        loud.append(head.register_forward_hook(lambda module, given, out: out * 30))

    def quiet() -> None:
        between.append(len(batches))
        loud[0].remove()

    trainer.add_callback(At(9, louder))
    trainer.add_callback(At(10, quiet))
    fit(
        trainer,
        lambda values, step: logged.append((dict(values), step)),
        Course(8, {}, spikes=Spikes(watch(), tables.append, "sft")),
    )
    alarms = [(values["alarm/loss_spike"], step) for values, step in logged if "alarm/loss_spike" in values]
    assert alarms == [(1.0, 9), (0.0, 10)]
    (record,) = tables[-1]
    assert record["step"] == 9
    assert record["loss"] > record["limit"] > record["median"]
    assert set(record["rows"]) == expected(batches[slice(*between)])


def expected(batches: list[Any]) -> set[str]:
    """The rows whose tokens are in the batches, one behind the other."""
    tokens = [batch["input_ids"].flatten().tolist() for batch in batches]
    texts = [" " + " ".join(map(str, found)) + " " for found in tokens]
    return {e.row_id for e in examples() if any(f" {' '.join(map(str, e.input_ids))} " in text for text in texts)}


def test_a_spike_ends_the_run_where_it_is_told_to() -> None:
    shown: list[Any] = []
    spikes = Spikes(watch(stop=True), shown.append, "distill")
    found = [spikes.observe(step, loss) for step, loss in enumerate([2.0] * 5 + [9.0])][-1]
    assert found is not None
    with pytest.raises(Refused, match=r"step 5: loss 9 .*distill\.watch\.loss_spike"):
        spikes.tell(found, ["row-1"])
    assert json.loads(json.dumps(shown[-1]))[0]["rows"] == ["row-1"]
