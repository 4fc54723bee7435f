"""A mixture of experts through the launcher: four-bit experts, Muon, and what the run says of both."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
from transformers import AutoTokenizer

from pipelines.config.paths import PROJECT
from tests.conftest import World
from tests.policy.architectures import FAMILIES


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE of random weights with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    FAMILIES["qwen3_moe"].made(**ends, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_experts_in_four_bits_train_and_are_told(
    world: World, finished: World, mixture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["model=qwen3_30b_a3b", f"model.id={mixture}", "model.revision=null", "model.chat.thinking=null"]
    chosen += ["adapter=qlora", "adapter.train_router=true", "optimizer=muon", "compute.gradient_checkpointing=true"]
    rows = f"sft.rows={finished.product('rows')}"
    assert world.run("sft", rows, *chosen) == 0
    told = capsys.readouterr().out
    assert "parameters to train (attention " in told
    assert ", router " in told
    assert "MB in 4 bit" in told
    assert "not in 4 bit" not in told
    folder = world.product("adapter")
    run_id = json.loads((folder / "manifest.json").read_text())["made_by"]["run_id"]
    client = mlflow.MlflowClient(world.store)
    found = client.get_run(run_id).data
    for layer in (0, 1):
        assert 0 < found.metrics[f"sft/moe/layer_{layer:02}/load_entropy"] <= 1
        assert 0.25 <= found.metrics[f"sft/moe/layer_{layer:02}/max_share"] <= 1
    assert len(client.get_metric_history(run_id, "sft/moe/load_entropy")) == 6
    assert found.metrics["sft/moe/aux_loss"] >= 1
    assert found.params["cfg.optimizer.muon.momentum"] == "0.95"
    counted = {name: value for name, value in found.metrics.items() if name.startswith("sft/trainable/")}
    assert set(counted) == {"sft/trainable/attention", "sft/trainable/router"}
    assert f"{int(sum(counted.values())):,} parameters to train" in told
    assert torch.isfinite(torch.tensor(found.metrics["sft/loss"]))
    # What is evaluated is what was trained over: the same experts in four bits.
    scores = [f"evaluate.rows={finished.product('rows')}", f"evaluate.adapter={folder}"]
    assert world.run("evaluate", *scores, *chosen) == 0


def test_experts_are_not_trained_in_four_bits(
    world: World, finished: World, mixture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["model=qwen3_30b_a3b", f"model.id={mixture}", "model.revision=null", "model.chat.thinking=null"]
    chosen += ["adapter=qlora", "adapter.train_experts=true", f"sft.rows={finished.product('rows')}"]
    assert world.run("sft", *chosen) == 2
    assert "adapter.quantization.experts: peft puts no LoRA on experts in 4 bit" in capsys.readouterr().err
    assert world.run("sft", *chosen, "adapter.quantization.experts=false") == 0
    told = capsys.readouterr().out
    assert ", experts " in told
    assert "its experts are not in 4 bit" in told
