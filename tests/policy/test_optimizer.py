"""Every optimizer trained for real through a trainer: what it moves, how, and that a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from pipelines.config.compose import compose
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy import optimizer as optimizers
from pipelines.policy.muon import MuonWithAdamW, matrices_of
from pipelines.policy.qk_clip import MAX_LOGITS, QkClip, largest_logits
from tests.policy.architectures import FAMILIES, SIZES

LAYERS = {"num_hidden_layers": 2, "head_dim": 32}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RATE = 1e-2


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | LAYERS | more)))


def rows() -> Dataset:
    torch.manual_seed(3)
    ids = torch.randint(2, 96, (16, 12)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def composed(*overrides: str) -> Config:
    return compose([*overrides]).config


def trainer_of(base: Any, config: Config, folder: Path, tokenizer: Any, **settings: Any) -> SFTTrainer:
    """A trainer as the stages build it, over four batches of four rows."""
    targets = settings.pop("peft", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]})
    given = {"max_steps": 6, "save_strategy": "no", "logging_steps": 1, "lr_scheduler_type": "linear"} | settings
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=RATE,
        optim=config.optimizer.optim,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **given,
    )
    optimizers.check(args, "sft.trainer")
    torch.manual_seed(1)
    trainer = SFTTrainer(
        model=base,
        args=args,
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **targets),
    )
    optimizers.attach(config, trainer)
    return trainer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from pipelines.config.paths import PROJECT

    return AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapter_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


NAMES = ["adamw", "paged_adamw_8bit", "lora_plus", "muon"]


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_trains_and_resumes_exactly(name: str, tmp_path: Path, tokenizer: Any) -> None:
    config = composed(f"optimizer={name}")
    kept = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(llama(), config, tmp_path, tokenizer, **kept)
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    again = trainer_of(llama(), config, tmp_path, tokenizer, **kept)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(again) == losses(whole)
    ended, resumed = adapter_of(whole.model), adapter_of(again.model)
    assert all(torch.equal(ended[key], resumed[key]) for key in ended)
    started = load_file(tmp_path / "checkpoint-3/adapter_model.safetensors")
    assert len(started) == len(ended)


def test_states_of_paged_adamw_8bit_are_in_eight_bits(tmp_path: Path, tokenizer: Any) -> None:
    base = llama(hidden_size=1024, num_attention_heads=2)
    trainer = trainer_of(base, composed("optimizer=paged_adamw_8bit"), tmp_path, tokenizer, max_steps=1)
    trainer.train()
    dtypes = {p.numel() >= 4096: state["state1"].dtype for p, state in trainer.optimizer.optimizer.state.items()}
    assert dtypes == {True: torch.uint8, False: torch.float32}


def test_lora_plus_gives_b_its_own_learning_rate(tmp_path: Path, tokenizer: Any) -> None:
    config = composed("optimizer=lora_plus", "optimizer.lora_plus_ratio=8.0")
    trainer = trainer_of(llama(), config, tmp_path, tokenizer)
    made = trainer.create_optimizer()
    names = {p: name for name, p in trainer.model.named_parameters()}
    rates: dict[str, set[float]] = {"lora_A": set(), "lora_B": set()}
    for group in made.param_groups:
        for p in group["params"]:
            rates["lora_A" if "lora_A" in names[p] else "lora_B"].add(group["lr"])
    assert rates == {"lora_A": {RATE}, "lora_B": {8 * RATE}}
    trainer.create_scheduler(6)
    assert {rate / RATE for rate in trainer.lr_scheduler.base_lrs} == {1.0, 8.0, 1e-6 / RATE}


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw(tmp_path: Path, tokenizer: Any) -> None:
    config = composed("optimizer=muon")
    peft = {"target_modules": ["q_proj", "k_proj"], "target_parameters": [*EXPERTS, "mlp.gate.weight"]}
    peft["modules_to_save"] = ["norm"]
    trainer = trainer_of(FAMILIES["qwen3_moe"].made(), config, tmp_path, tokenizer, peft=peft)
    made = trainer.create_optimizer()
    assert isinstance(made, MuonWithAdamW)
    names = {p: name for name, p in trainer.model.named_parameters()}
    split = {
        flag: {names[p] for g in made.param_groups if g["matrices"] == flag for p in g["params"]} for flag in (1, 0)
    }
    assert split[1] | split[0] == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert not split[1] & split[0]
    assert split[1] == matrices_of(trainer.model)
    assert all("self_attn" in name or ".gate." in name for name in split[1])
    assert all("norm" in name or ".experts." in name for name in split[0])
    assert any("norm" in name for name in split[0])
    assert any(".experts." in name for name in split[0])
    before = adapter_of(trainer.model)
    torch.manual_seed(2)
    for p in names:
        p.grad = torch.randn_like(p) if p.requires_grad else None
    made.step()
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            update = (p.detach() - before[name]) / RATE
            if name in split[1]:  # all singular values alike, and of AdamW's size
                values = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
                assert float(values.min()) > 0.4
                assert float(values.max()) < 1.4
            else:  # the first step of Adam is the gradient's sign
                assert torch.allclose(update.abs(), torch.ones_like(update), atol=1e-3)


def test_muon_updates_otherwise_than_adamw(tmp_path: Path, tokenizer: Any) -> None:
    ended = {}
    for name in ("adamw", "muon"):
        trainer = trainer_of(llama(), composed(f"optimizer={name}"), tmp_path, tokenizer, max_steps=2)
        trainer.train()
        ended[name] = adapter_of(trainer.model)
    assert all((ended["muon"][name] - ended["adamw"][name]).abs().max() > 1e-3 for name in ended["muon"])


def test_a_loaded_state_is_shared_by_both_parts() -> None:
    def made() -> MuonWithAdamW:
        torch.manual_seed(0)
        groups = [[{"params": [nn.Parameter(torch.randn(6, 4))]}], [{"params": [nn.Parameter(torch.randn(5))]}]]
        return MuonWithAdamW(groups[0], groups[1], {"lr": 0.1}, {"lr": 0.1})

    def step(optimizer: MuonWithAdamW) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.sin(p.detach() * 7)
        optimizer.step()

    first, second = made(), made()
    step(first)
    step(second)
    third = made()
    for ours, theirs in zip(third.param_groups, second.param_groups, strict=True):
        ours["params"][0].data.copy_(theirs["params"][0].data)
    third.load_state_dict(second.state_dict())
    third.param_groups[0]["lr"] = first.param_groups[0]["lr"] = 0.3  # as a scheduler does
    step(first)
    step(third)
    pairs = zip(first.param_groups, third.param_groups, strict=True)
    assert all(torch.equal(a["params"][0], b["params"][0]) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, "cosine can't be made of .*min_lr"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr can't be made of {}: .*min_lr"),
        ({"optim": "grokadamw"}, "sft.trainer.optim: grokadamw: .*install"),
    ],
)
def test_what_cannot_be_made_is_refused_before_a_model_is_there(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **settings)
    with pytest.raises(UserError, match=message):
        optimizers.check(args, "sft.trainer")


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
    ],
)
def test_schedules_of_transformers_are_taken(settings: dict[str, Any], tmp_path: Path) -> None:
    optimizers.check(SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings), "sft.trainer")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=muon", "optimizer.lora_plus_ratio=4.0"], "muon and lora_plus_ratio both decide"),
        (["sft.trainer.lr_scheduler_type=cosine_with_wings"], "sft.trainer.lr_scheduler_type"),
        (["optimizer.optim=adam_of_ours"], "sft.trainer.optim"),
    ],
)
def test_configuration_refuses(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(overrides)


def test_muon_wants_adamw_for_the_rest(tmp_path: Path, tokenizer: Any) -> None:
    config = composed("optimizer=muon", "optimizer.optim=sgd")
    trainer = trainer_of(llama(), config, tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"optimizer\.optim: sgd: with optimizer\.muon the rest is AdamW's"):
        trainer.create_optimizer()


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("padded", [False, True])
def test_largest_logits_are_those_of_the_whole_matrix(heads: tuple[int, int], padded: bool) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(3, heads[0], 700, 8), torch.randn(3, heads[1], 700, 8)
    seen = torch.ones(700, 700).tril().bool().expand(3, 1, 700, 700).clone()
    if padded:
        seen[1, :, :, :5] = False
    logits = query @ key.repeat_interleave(heads[0] // heads[1], 1).transpose(-1, -2) * 0.5
    wanted = logits.masked_fill(~seen, -torch.inf).amax((0, 2, 3))
    assert torch.allclose(largest_logits(query, key, seen if padded else None, 0.5), wanted)
    added = torch.zeros(3, 1, 700, 700).masked_fill(~seen, torch.finfo(torch.float32).min)
    assert torch.allclose(largest_logits(query, key, added, 0.5), wanted)


# Built to exceed: the learning rate makes the largest logit explode within forty steps.
CLIPPED = {
    "keys of each head": (lambda: llama(num_key_value_heads=2), ["q_proj", "k_proj"], 0.03, 5.0),
    "shared keys": (llama, ["q_proj", "k_proj"], 0.03, 5.0),
    "latent": (FAMILIES["deepseek_v3"].made, ["q_b_proj", "kv_b_proj"], 0.1, 10.0),
}


@pytest.mark.parametrize("kind", CLIPPED)
def test_attention_logits_stay_bounded(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    make, targets, rate, tau = CLIPPED[kind]
    tops: dict[float, list[float]] = {}
    for limit in (1e6, tau):
        config = composed("optimizer=muon_clip", f"optimizer.qk_clip.tau={limit}")
        settings = {"max_steps": 40, "lr_scheduler_type": "constant", "peft": {"target_modules": targets}}
        trainer = trainer_of(make(), config, tmp_path, tokenizer, **settings)
        trainer.args.learning_rate = rate
        tops[limit] = []
        trainer.add_callback(_Kept(tops[limit]))
        trainer.train()
    assert len(tops[tau]) == 40
    assert max(tops[1e6]) > 5 * tau
    assert max(tops[tau]) < 3.5 * tau
    assert sum(tops[tau][-10:]) / 10 < 2.5 * tau


class _Kept(TrainerCallback):
    def __init__(self, seen: list[float]) -> None:
        self.seen = seen

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "qk_clip/max_logit" in logs:
            self.seen.append(logs["qk_clip/max_logit"])


def test_only_the_heads_over_tau_are_shrunk(tmp_path: Path, tokenizer: Any) -> None:
    config = composed("optimizer=muon_clip", "optimizer.qk_clip.tau=10.0")
    trainer = trainer_of(llama(num_key_value_heads=2), config, tmp_path, tokenizer)
    clip = next(c for c in trainer.callback_handler.callbacks if isinstance(c, QkClip))
    attention = trainer.model.get_base_model().model.layers[0].self_attn
    for layer in (attention.q_proj, attention.k_proj):
        nn.init.ones_(layer.lora_B["default"].weight)
    setattr(attention, MAX_LOGITS, torch.tensor([40.0, 9.0]))
    clip.on_step_end(trainer.args, trainer.state, trainer.control)
    for layer in (attention.q_proj, attention.k_proj):
        halves = layer.lora_B["default"].weight.chunk(2)
        assert torch.allclose(halves[0], torch.full_like(halves[0], 0.5))  # twice the root of 10 / 40
        assert torch.equal(halves[1], torch.ones_like(halves[1]))
    assert not hasattr(attention, MAX_LOGITS)


@pytest.mark.parametrize(
    ("make", "overrides", "peft", "message"),
    [
        (
            lambda: Qwen3ForCausalLM(Qwen3Config(**(SIZES | LAYERS))),
            [],
            {"target_modules": ["q_proj"]},
            "normalises its queries",
        ),
        (llama, [], {"target_modules": ["v_proj"]}, "no adapter is on the queries"),
        (llama, ["compute.attn_implementation=eager"], {"target_modules": ["q_proj"]}, "measures logits beside sdpa"),
        (llama, ["adapter=dora"], {"target_modules": ["q_proj"]}, "multiplies B of plain LoRA"),
    ],
)
def test_a_clip_that_would_do_nothing_is_refused(
    make: Any, overrides: list[str], peft: dict[str, Any], message: str, tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match=message):
        trainer_of(make(), composed("optimizer=muon_clip", *overrides), tmp_path, tokenizer, peft=peft)


def test_a_base_that_is_over_tau_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    config = composed("optimizer=muon_clip", "optimizer.qk_clip.tau=0.001")
    trainer = trainer_of(llama(), config, tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"qk_clip.tau: the base's own logits reach .*frozen"):
        trainer.train()


def test_the_plain_block_leaves_the_trainer_as_it_is(tmp_path: Path, tokenizer: Any) -> None:
    trainer = trainer_of(llama(), composed(), tmp_path, tokenizer)
    assert trainer.optimizer_cls_and_kwargs is None
    assert type(trainer.create_optimizer()) is AdamW


def test_every_file_of_the_group_is_tried() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "conf/optimizer").glob("*.yaml")}
    assert files == {*NAMES, "muon_clip"}
