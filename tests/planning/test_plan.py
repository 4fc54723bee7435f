"""The plan from kept facts, without torch: what it counts, what fits, what it says and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.planning.architecture import SHIPPED, settings_of
from pipelines.planning.automatic import NAMES, settled
from pipelines.planning.facts import Facts, kept_facts
from pipelines.planning.fitting import available, choose, fits
from pipelines.planning.keep import adapter_of, adapters_over, profile_of
from pipelines.planning.memory import GIB, STRATEGIES, WORST_OVER, Job, four_bit, predict, state_bytes
from pipelines.planning.plan import planned
from pipelines.planning.preflight import check, remedies
from pipelines.planning.report import markdown, page, terminal
from pipelines.planning.setting import facts_for, job_of

# Billions of parameters as their makers publish them, all and active ones.
PUBLISHED = {
    "qwen3_0_6b": (0.6, None),
    "qwen3_1_7b": (1.7, None),
    "qwen3_4b": (4.0, None),
    "qwen3_8b": (8.2, None),
    "qwen3_14b": (14.8, None),
    "qwen3_32b": (32.8, None),
    "qwen3_30b_a3b": (30.5, 3.3),
    "qwen3_235b_a22b": (235, 22),
    "qwen2_5_coder_32b": (32.5, None),
    "llama_3_3_70b": (70.6, None),
    "llama_4_scout": (109, 17),
    "mistral_small_3_2_24b": (24, None),
    "gemma_3_4b": (4.3, None),
    "gemma_3_27b": (27.4, None),
    "phi_4_14b": (14.7, None),
    "gpt_oss_20b": (20.9, 3.6),
    "gpt_oss_120b": (117, 5.1),
    "deepseek_r1_distill_qwen_7b": (7.6, None),
    "deepseek_r1_distill_qwen_32b": (32.8, None),
    "deepseek_v3_2": (671, 37),
    "kimi_k2": (1030, 32),
    "glm_5": (744, 40),
}


def configured(*overrides: str) -> Config:
    return compose(overrides).config


def facts_of(profile: str, adapter: str = "lora") -> Facts:
    model = profile_of(profile)
    found = kept_facts(model, adapter_of(adapter, model), settings_of(model))
    assert found is not None
    return found


def test_every_shipped_profile_has_its_architecture() -> None:
    local = {path.stem for path in (CONF / "model").glob("tiny*.yaml")}
    profiles = {path.stem for path in (CONF / "model").glob("*.yaml")} - local
    assert profiles == {path.stem for path in SHIPPED.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("profile", PUBLISHED)
def test_the_kept_counts_are_those_that_the_makers_publish(profile: str) -> None:
    counts = facts_of(profile).counts
    total, active = PUBLISHED[profile]
    assert counts.total / 1e9 == pytest.approx(total, rel=0.02)
    if active is not None:
        # Makers leave embeddings out, or round: gpt-oss's 3.6 and Scout's 17 without the input embedding.
        assert min(
            abs(found / 1e9 / active - 1) for found in (counts.active, counts.active - counts.embedding)
        ) == pytest.approx(0, abs=0.05)
    assert bool(counts.experts) == (active is not None)


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_shipped_adapter_is_kept(profile: str) -> None:
    model = profile_of(profile)
    for name, adapter in adapters_over(model):
        assert kept_facts(model, adapter, settings_of(model)), name


def test_a_plan_from_kept_facts_imports_nothing_heavy() -> None:
    script = (
        "import sys; from pipelines.config.compose import compose; from pipelines.planning.plan import planned;"
        "planned(compose(['model=llama_3_3_70b', 'adapter=qlora', 'compute=gpu_80gb']).config);"
        "print({'torch', 'transformers', 'peft', 'mlflow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


def test_four_bit_weights_are_those_of_the_paper() -> None:
    """4.127 bit with double quantisation, 0.373 more without (Dettmers et al. 2023, section 3)."""
    quantization = adapter_of("qlora", profile_of("qwen3_8b")).quantization
    assert quantization is not None
    assert 8 * four_bit(quantization) == pytest.approx(4.127, abs=1e-3)
    single = quantization.model_copy(update={"bnb_4bit_use_double_quant": False})
    assert 8 * (four_bit(single) - four_bit(quantization)) == pytest.approx(0.373, abs=1e-3)


def test_weights_of_a_quantized_dense_model_leave_embedding_and_head() -> None:
    facts, job = facts_of("qwen3_8b", "qlora"), job_of("sft", configured("model=qwen3_8b", "adapter=qlora"))
    counts = facts.counts
    weights = predict(facts, replace(job, dtype="bfloat16")).kept["weights"]
    packed = 6_945_767_424
    assert counts.linear == packed
    assert weights == pytest.approx(0.51587 * packed + 2 * (8_190_735_360 - packed), rel=1e-4)


def test_the_states_of_optimizers_by_name() -> None:
    assert [state_bytes(name, 4) for name in ("adamw_torch_fused", "paged_adamw_8bit", "adamw_8bit", "sgd")] == [
        8,
        2,
        2,
        0,
    ]
    assert state_bytes("muon", 4) == state_bytes("lion_32bit", 4) == 4


@pytest.mark.parametrize(
    "larger", [{"micro_batch": 4}, {"length": 4096}, {"checkpointing": False}, {"logit_bytes": 12.0}]
)
def test_more_work_takes_more(larger: dict[str, Any]) -> None:
    facts, job = facts_of("qwen3_8b"), Job(2, 2048, True)
    assert predict(facts, replace(job, **larger)).total > predict(facts, job).total


def test_strategies_share_what_they_share() -> None:
    facts, job = facts_of("llama_3_3_70b"), Job(1, 2048, True, cards=8)
    memory = {name: predict(facts, replace(job, strategy=name)) for name in STRATEGIES}
    whole = memory["ddp"].kept
    assert memory["zero2"].kept["weights"] == whole["weights"]
    assert memory["zero3"].kept["weights"] == memory["fsdp2"].kept["weights"] == whole["weights"] / 8
    states = [memory[name].kept["optimizer states"] for name in ("zero1", "zero2", "zero3")]
    assert max(states) == min(states) == pytest.approx(12 * facts.trainable / 8)
    assert memory["zero2"].kept["gradients"] < memory["zero1"].kept["gradients"]
    assert memory["fsdp2"].total < memory["zero2"].total / 3
    # What is gathered is on top at every moment: two layers, embedding and head.
    assert memory["fsdp2"].moments["logits and loss"] > 2 * (2 * facts.counts.largest_layer + facts.counts.embedding)


def test_generation_needs_its_cache() -> None:
    config = configured("model=qwen3_8b", "compute=gpu_80gb", "grpo.trainer.max_completion_length=2048")
    job = job_of("grpo", config)
    assert job.length == 2560
    assert job.samples == 8 * 16
    cache = 128 * 2560 * 36 * 2 * 8 * 128 * 2
    checkpointed = replace(job, checkpointing=True)
    memory = predict(facts_of("qwen3_8b"), checkpointed)
    assert memory.moment == "generation's KV cache"
    assert memory.kept["activations"] + memory.moments[memory.moment] == pytest.approx(cache, rel=0.02)
    assert job_of("grpo", configured("model=qwen3_8b", "grpo.trainer.use_vllm=true")).samples == 0


def test_the_largest_of_the_table_fit_and_more_does_not() -> None:
    config = configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb", "sft.trainer.max_length=2048")
    facts, job = facts_for(config), job_of("sft", config)
    found = next(row for row in planned(config)["rows"] if (row["memory_gb"], row["cards"]) == (24, 1))
    assert 1 < found["largest_micro_batch"] < 1024
    for more, same in ((0, True), (1, False)):
        batch = replace(job, micro_batch=found["largest_micro_batch"] + more)
        length = replace(job, micro_batch=1, length=found["longest_sequence"] + 128 * more)
        assert fits(facts, batch, 24) == fits(facts, length, 24) == same


def test_parts_add_up_and_cost_follows_the_price() -> None:
    config = configured("model=qwen3_8b", "compute=gpu_80gb", "plan.price_per_gpu_hour=2.5", "plan.tokens=1000000000")
    for row in planned(config)["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(row["total"])
        low, high = row["tokens_per_second"]
        assert row["hours"] == pytest.approx([1e9 / high / 3600, 1e9 / low / 3600])
        assert row["cost"] == pytest.approx([hours * row["cards"] * 2.5 for hours in row["hours"]])


def test_a_published_speed_is_in_the_range() -> None:
    """NeMo AutoModel: LoRA of a Llama-3.1-8B on one H100, 12.47k tokens a second; a Qwen3-8B has its arithmetic."""
    config = configured(
        "model=qwen3_8b", "adapter.peft.r=16", "compute=gpu_80gb", "sft.trainer.max_length=4096",
        "sft.trainer.per_device_train_batch_size=2",
    )  # fmt: skip
    low, high = next(r for r in planned(config)["rows"] if (r["memory_gb"], r["cards"]) == (80, 1))["tokens_per_second"]
    assert low < 12_470 < high


def test_a_quantized_mixture_of_experts_is_told_honestly() -> None:
    sixteen = "adapter.quantization.experts=false"
    plan = planned(configured("model=qwen3_30b_a3b", "adapter=qlora", sixteen, "compute=gpu_80gb"))
    assert plan["model"]["total"] == 30_532_122_624
    assert 3.2e9 < plan["model"]["active"] < 3.4e9
    weights = plan["configured"]["parts"]["weights"] * GIB
    assert 59e9 < weights < 61e9  # not the 16 GB that its 4 bit would promise
    assert any("4-bit loading leaves the 28,991,029,248 parameters" in note for note in plan["notes"])


def test_experts_in_four_bit_are_loaded_in_sixteen() -> None:
    job = ("model=qwen3_30b_a3b", "adapter=qlora", "compute=gpu_80gb", "plan.stage=sft")
    packed = planned(configured(*job, "sft.trainer.gradient_checkpointing=true"))["configured"]
    assert 16e9 < packed["parts"]["weights"] * GIB < 18e9
    assert packed["total"] * GIB > 59e9
    assert "loading, with the experts in 16 bit" in packed["parts"]
    # Without checkpointing autograd keeps every layer's experts as they were taken out of their 4 bit.
    whole = planned(configured(*job, "sft.trainer.gradient_checkpointing=false"))["configured"]
    assert whole["parts"]["activations"] * GIB > 57e9


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_reports_hold_every_machine(adapter: str) -> None:
    asked = ("model=qwen3_8b", f"adapter={adapter}", "compute=gpu_24gb", "plan.price_per_gpu_hour=2.0")
    plan = json.loads(json.dumps(planned(configured(*asked, "sft.trainer.gradient_checkpointing=true"))))
    assert len(plan["rows"]) == 20
    lines = terminal(plan)
    table = [line for line in lines if " GB " in line]
    assert len(table) == 20
    assert max(map(len, table)) < 200
    assert markdown(plan).count("\n| ") == 1 + 1 + 20
    assert page(plan).count("<tr>") == 21
    assert any(line.startswith("plan.auto=true would take sft.trainer.per_device") for line in lines)


# --- architectures that can't be had ------------------------------------------------------------


def written(folder: Path, **values: Any) -> str:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return f"model.id={folder}"


def test_a_model_of_remote_code_is_refused(tmp_path: Path) -> None:
    given = written(tmp_path, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    with pytest.raises(UserError, match="code of its own"):
        planned(configured("model=qwen3_8b", given))


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_type starship, which transformers doesn't know"):
        planned(configured("model=qwen3_8b", written(tmp_path, model_type="starship")))


def test_a_config_that_nobody_can_reach_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json of nobody/nothing can be read"):
        planned(configured("model=qwen3_8b", "model.name=mine", "model.id=nobody/nothing"))
    with pytest.raises(UserError, match=r"holds no config\.json"):
        planned(configured("model=qwen3_8b", f"model.id={tmp_path}"))


# --- preflight and choices ----------------------------------------------------------------------

TOO_LARGE = (
    ("sft", "model=llama_3_3_70b", "compute=gpu_80gb", "sft.trainer.per_device_train_batch_size=1"),
    ("sft", "model=qwen3_14b", "compute=gpu_24gb"),
    ("sft", "model=llama_3_3_70b", "compute=gpu_24gb"),
    ("sft", "model=qwen3_8b", "compute=gpu_80gb", "sft.trainer.max_length=8192"),
    ("grpo", "model=qwen3_8b", "compute=gpu_24gb"),
    ("sft", "model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb", "sft.trainer.max_length=32768"),
)


@pytest.mark.parametrize("given", TOO_LARGE, ids=" ".join)
def test_what_cant_fit_is_refused_with_what_would(given: tuple[str, ...]) -> None:
    stage, *overrides = given
    config = configured(*overrides)
    with pytest.raises(UserError, match=r"GiB expected of .* what would fit: ") as refused:
        check(stage, config)
    offers = [text for text, _, _ in remedies(stage, config, facts_for(config), job_of(stage, config))]
    assert all(text in str(refused.value) for text in offers)
    for text in offers:
        # Given as a user would beside what he set himself, and looked at with the composed configuration alone.
        machine = "compute=" in text
        made = configured(*(word for word in overrides if not (machine and word.startswith("compute="))), *text.split())
        made = settled([stage], made)
        assert made.compute.memory_gb is not None
        assert predict(facts_for(made), job_of(stage, made)).total <= available(made.compute.memory_gb)
        check(stage, made)


def test_what_fits_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    check("sft", configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "GiB expected of 23.5 GiB on the card" in said


def test_a_margin_is_no_reason_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    config = configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb")
    total = predict(facts_for(config), job_of("sft", config)).total / GIB
    close = total * (1 - WORST_OVER / 2) / 0.98
    check("sft", config.model_copy(update={"compute": config.compute.model_copy(update={"memory_gb": close})}))
    assert "may be too much" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides", [("model=qwen3_8b",), ("model=qwen3_8b", "compute=gpu_24gb", "compute.memory_gb=null")]
)
def test_other_machines_are_not_looked_at(overrides: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    check("sft", configured(*overrides))
    check("prepare", configured("model=llama_3_3_70b", "compute=gpu_24gb"))
    assert not capsys.readouterr().out


def test_chosen_settings_keep_the_effective_batch(capsys: pytest.CaptureFixture[str]) -> None:
    config = configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb", "plan.auto=true")
    made = settled(["sft"], config)
    micro_batch, accumulation, checkpointing = (made.sft.trainer[name] for name in NAMES[:3])
    assert micro_batch * accumulation == 32
    facts, job = facts_for(made), job_of("sft", made)
    assert fits(facts, job, 24)
    assert not checkpointing
    assert not fits(facts, replace(job, micro_batch=2 * micro_batch), 24)
    # What was printed gives the same by hand, and the rest of the configuration is as it was.
    printed = capsys.readouterr().out.split("chose ")[1].split()
    by_hand = configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb", *printed)
    assert by_hand.sft == made.sft
    assert made.grpo == config.grpo


def test_a_part_of_the_layers_is_checkpointed_where_that_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("model=qwen3_8b", "adapter=lora", "compute=gpu_24gb", "sft.trainer.max_length=1024")
    made = settled(["sft"], configured(*asked, "plan.auto=true"))
    every_n = made.sft.trainer["gradient_checkpointing_kwargs"]["every_n_layers"]
    assert made.sft.trainer["gradient_checkpointing"]
    assert every_n in (2, 4)
    facts, job = facts_for(made), job_of("sft", made)
    assert job.every_n == every_n
    assert fits(facts, job, 24)
    assert not fits(facts, replace(job, micro_batch=1, every_n=2 * every_n), 24)
    assert not fits(facts, replace(job, micro_batch=1, checkpointing=False), 24)
    on, part, off = (
        predict(facts, one).kept["activations"]
        for one in (replace(job, every_n=1), job, replace(job, checkpointing=False))
    )
    assert on < part < off
    printed = capsys.readouterr().out.split("chose ")[1].split()
    assert configured(*asked, *printed).sft == made.sft


def test_checkpointing_comes_back_where_memory_asks_for_it() -> None:
    facts = facts_of("llama_3_3_70b", "qlora")
    config = configured("model=llama_3_3_70b", "adapter=qlora", "compute=gpu_80gb", "sft.trainer.max_length=4096")
    found = choose(facts, job_of("sft", config), 4, 80)
    assert found is not None
    assert found.checkpointing
    assert found.micro_batch * found.accumulation == 32


def test_choices_need_a_known_card() -> None:
    with pytest.raises(UserError, match=r"plan\.auto: needs compute\.device=cuda"):
        settled(["sft"], configured("model=qwen3_8b", "plan.auto=true"))
    assert settled(["prepare"], configured("plan.auto=true")).plan.auto


def test_shipped_machines_hold_what_readme_shows() -> None:
    check("sft", configured("model=qwen3_8b", "adapter=qlora", "compute=gpu_24gb"))
    check(
        "sft",
        settled(["sft"], configured("model=llama_3_3_70b", "adapter=qlora", "compute=gpu_80gb", "plan.auto=true")),
    )


def test_every_machine_of_conf_is_a_choice_of_the_preflight() -> None:
    sizes = {yaml.safe_load(path.read_text())["memory_gb"] for path in (CONF / "compute").glob("gpu_*.yaml")}
    assert sizes >= {24.0, 48.0, 80.0}
