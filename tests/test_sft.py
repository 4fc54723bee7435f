"""Real training on a small model: what changes, what must not, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.policy.template import render
from tests.conftest import World

SHIPPED = "model.id=data/models/tiny"  # random weights learn too little to be told from noise


@pytest.fixture
def rows(finished: World) -> str:
    return f"sft.rows={finished.product('rows')}"


def history(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((world.product("adapter") / "training.json").read_text())
    return found


def test_loss_falls_and_the_base_stays_as_it_was(world: World, rows: str) -> None:
    before = products.folder_files(PROJECT / "data/models/tiny")
    assert world.run("sft", rows, SHIPPED, "sft.trainer.max_steps=40") == 0
    losses = [entry["loss"] for entry in history(world) if "loss" in entry]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert products.folder_files(PROJECT / "data/models/tiny") == before


def test_reloaded_adapter_changes_the_logits_and_names_its_base(finished: World) -> None:
    folder = finished.product("adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(finished.model)
    assert settings["revision"] == products.load(folder).about["base"]["revision"]
    base = AutoModelForCausalLM.from_pretrained(finished.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(render(tokenizer, [[{"role": "user", "content": "Where is it?"}]], [None], {}, prompt=True))
    with torch.no_grad():
        plain = base(ids).logits
        tuned = PeftModel.from_pretrained(base, str(folder))(ids).logits
    assert (plain - tuned).abs().max() > 1e-3


def test_adapter_is_bit_for_bit_that_of_a_bare_trl_script(
    finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.__main__ import run

    capsys.readouterr()
    assert run(["sft", *finished.overrides(), "--cfg", "job"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    words = [str(tmp_path / "config.yaml"), str(finished.product("rows")), str(tmp_path / "bare")]
    subprocess.run([sys.executable, "-m", "benchmarks.bare_sft", *words], cwd=PROJECT, check=True, capture_output=True)
    ours = finished.product("adapter") / "adapter_model.safetensors"
    assert ours.read_bytes() == (tmp_path / "bare" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "adapter",
    [
        "qlora",
        "pissa",
        "prefix_tuning",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("loftq", "dora", "ia3")),
    ],
)
def test_every_kind_of_adapter_trains_and_is_scored(
    world: World, finished: World, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter in memory and the one reloaded on the published base score the validation rows alike."""
    stages = [f"adapter={adapter}", "sft.trainer.max_steps=4"]
    stages += ["adapter.peft.r=8"] if adapter in ("qlora", "pissa", "loftq", "dora") else []
    overrides = [o for o in world.overrides() if not o.startswith("adapter.")]
    shown = World(world.folder, world.store, world.model, world.rows)
    shown.overrides = lambda: overrides  # type: ignore[method-assign]
    rows = finished.product("rows")
    assert shown.run("sft", f"sft.rows={rows}", *stages) == 0
    folder = shown.product("adapter")
    assert shown.run("evaluate", f"evaluate.rows={rows}", f"evaluate.adapter={folder}", *stages) == 0
    assert shown.product("scores")


def test_a_loss_that_is_no_number_stops_the_run(world: World, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("sft", rows, "sft.trainer.learning_rate=0.99", "sft.trainer.max_grad_norm=0.0", *HUGE) == 2
    error = capsys.readouterr().err
    assert "lower the learning rate" in error
    assert not list(world.folder.glob("adapters/*/manifest.json"))


# An adapter scale at which one step overflows float32.
HUGE = [f"adapter.peft.lora_alpha={10**38}", "sft.trainer.max_steps=30", "sft.trainer.optim=sgd"]


def test_truncation_that_cuts_answers_is_refused_before_a_model_is_loaded(
    world: World, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("sft", rows, "sft.trainer.max_length=20") == 2
    error = capsys.readouterr().err
    assert "the loss-mask audit refuses this run" in error
    assert "rows whose answer sft.trainer.max_length cuts" in error


def test_early_stopping_keeps_the_best_checkpoint(world: World, rows: str) -> None:
    settings = ["sft.trainer.max_steps=200", "sft.trainer.eval_steps=10", "sft.trainer.save_steps=10"]
    settings += ["sft.early_stopping_patience=2", "sft.trainer.learning_rate=0.01"]
    assert world.run("sft", rows, SHIPPED, *settings) == 0
    losses = {entry["step"]: entry["eval_loss"] for entry in history(world) if "eval_loss" in entry}
    assert max(losses) < 200
    assert min(losses, key=lambda step: losses[step]) < max(losses)


def test_packed_rows_do_not_see_each_other(small_model: Path) -> None:
    """Changing one row of a pack changes no other row's loss."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(small_model, attn_implementation="sdpa").eval()
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)

    def losses(first: list[int]) -> torch.Tensor:
        batch = collator([{"input_ids": [*first, 7, 8, 9, 10], "seq_lengths": [len(first), 4]}])
        with torch.no_grad():
            return model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[
                0, len(first) :
            ]

    assert torch.allclose(losses([20, 21, 22, 23]), losses([90, 91, 92, 93]), atol=1e-5)


def test_packing_trains_through_the_launcher(world: World, rows: str) -> None:
    settings = ["sft.trainer.packing=true", "sft.trainer.max_length=128", "sft.trainer.per_device_train_batch_size=2"]
    assert world.run("sft", rows, *settings, "sft.trainer.train_sampling_strategy=random") == 0
    assert load_file(world.product("adapter") / "adapter_model.safetensors")
