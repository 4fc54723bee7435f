"""Divergences of distillation: right, quiet where there is nothing to learn, and small.

`python -m benchmarks.distillation_divergence` prints the figures. What needs a GPU (fused kernels, heads of billions of
weights) isn't measured here.
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipelines.__main__ import quieten
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row

CASES = 100
BETAS = (0.0, 0.5, 1.0)
LARGE = 150_000  # tokens of today's vocabularies
ROWS, PROMPT, ANSWER, HIDDEN = 8, 64, 32, 64  # of a step at such a vocabulary
TAUGHT, STEPS = 256, 60  # rows that the stored teacher has seen, and steps
SEED = 7


def measure() -> dict[str, float]:
    """The figures; a step's memory is taken in a process of its own."""
    quieten()
    torch.set_num_threads(2)
    loss, gradient = itself()
    ratio, difference = stored()
    return {
        "self_loss": loss,
        "self_grad": gradient,
        "divergence_max_diff": largest_difference(),
        "memory_ratio": peak("distillation") / peak("sft"),
        "stored_ratio": ratio,
        "stored_loss_diff": difference,
    }


def reference(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of each token, logits being (tokens, vocabulary).

    Agarwal et al. 2024, "On-Policy Distillation of Language Models", section 2.
    """
    s, t = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    if beta == 0:
        return (t.exp() * (t - s)).sum(-1)
    if beta == 1:
        return (s.exp() * (s - t)).sum(-1)
    m = ((1 - beta) * s.exp() + beta * t.exp()).log()
    of_teacher, of_student = (t.exp() * (t - m)).sum(-1), (s.exp() * (s - m)).sum(-1)
    return beta * of_teacher + (1 - beta) * of_student


def largest_difference() -> float:
    """Between TRL's divergence, in float32 and tiles, and the reference in float64, over random cases."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    draw, largest = random.Random(SEED), 0.0
    torch.manual_seed(SEED)
    for case in range(CASES):
        beta = (0.0, 1.0)[case % 10] if case % 10 < 2 else draw.random()
        tokens, vocabulary = draw.randint(1, 40), draw.randint(2, 40_000 if case % 20 == 0 else 2_000)
        widths = draw.randint(2, 64), draw.randint(2, 64)
        hidden = [torch.randn(1, tokens, width) for width in widths]
        heads = [torch.randn(vocabulary, width) / width**0.5 for width in widths]
        temperature = draw.uniform(0.5, 2)
        mask = torch.ones(1, tokens)
        found = _chunked_divergence_loss(*hidden, *heads, mask, beta, temperature=temperature)[0]
        logits = [h[0].double() @ head.double().T for h, head in zip(hidden, heads, strict=True)]
        wanted = reference(logits[0], logits[1], beta, temperature).mean()
        largest = max(largest, abs(float(found) - float(wanted)))
    return largest


def itself() -> tuple[float, float]:
    """Largest loss and gradient norm of a student with a moved adapter under a teacher that is its equal."""
    loss, gradient = 0.0, 0.0
    trainer = _trainer()
    for beta in BETAS:
        trainer.beta = beta
        trainer.model.train()
        trainer.model.zero_grad()
        batch = trainer._prepare_inputs([trainer.train_dataset[number] for number in range(ROWS)])
        found = trainer.compute_loss(trainer.model, batch)
        found.backward()
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        loss = max(loss, abs(found.item()))
        gradient = max(gradient, float(torch.stack([grad.norm() for grad in grads]).norm()))
    return loss, gradient


def _trainer() -> Any:
    """The on-policy trainer over the embedded model, whose adapter is no longer zero, and a copy of both as teacher."""
    from peft import get_peft_model

    from pipelines.config.compose import compose
    from pipelines.policy import on_policy
    from pipelines.policy.adapter import peft_config
    from pipelines.policy.base import load_base, load_tokenizer

    config = compose([f"distill.trainer.per_device_train_batch_size={ROWS}"]).config
    tokenizer = load_tokenizer(config.model)
    student = get_peft_model(
        load_base(config.model, config.adapter, config.compute), peft_config(config.adapter, config.model)
    )
    torch.manual_seed(SEED)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    teacher = SimpleNamespace(model=deepcopy(student), tokenizer=tokenizer, template={})
    rows = _rows(ROWS)
    asked = on_policy.Asked(rows, {row.id: 1 for row in rows})
    with tempfile.TemporaryDirectory() as folder:
        settings = on_policy.settings_of(config, Path(folder))
        return on_policy.build_trainer(config, settings, (student, teacher), tokenizer, asked, Path(folder))


def _rows(count: int) -> list[Row]:
    """Queries of Banking77 with their intents as answers."""
    with (PROJECT / "data/banking77/train.csv").open(encoding="utf-8", newline="") as stream:
        records = list(csv.DictReader(stream))
    every = len(records) // count
    return [
        Row(
            id=str(number),
            task="banking77",
            prompt=[{"role": "user", "content": record["text"]}],
            completion=[{"role": "assistant", "content": record["category"]}],
            answer=record["category"],
            label="",
            source=f"train.csv:{number}",
            group=str(number),
        )
        for number, record in enumerate(records[::every][:count])
    ]


def stored(top_k: int | None = None) -> tuple[float, float]:
    """Bytes of stored distributions over those of all, and how far the loss on them is from the full forward KL.

    The teacher is the embedded model after some steps on the rows, as teachers are; the student the smaller one.
    `top_k` None is what the configuration ships.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.config.compose import compose
    from pipelines.policy import stored_logits
    from pipelines.policy.imitation import encode_answers

    top_k = top_k or compose(["distillation=stored_logits"]).config.generate.top_k or 1
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(PROJECT / "data/models" / name, dtype=torch.float32).eval()
        for name in ("tiny", "tiny_quarter")
    )
    rows = _rows(TAUGHT)
    examples = encode_answers(tokenizer, rows, {})
    _teach(teacher, examples, tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / stored_logits.FOLDER
        told = SimpleNamespace(model=teacher, tokenizer=tokenizer, template={})
        about = stored_logits.store(told, rows, top_k, 32, folder, lambda count: None)
        kept = stored_logits.opened(folder, rows, examples, tokenizer)
    whole, part = 0.0, 0.0
    for start in range(0, len(examples), 32):
        batch = examples[start : start + 32]
        pairs = zip(*(stored_logits._log_probabilities(model, batch) for model in (student, teacher)), strict=True)
        for number, (ours, theirs) in enumerate(pairs, start=start):
            whole += float((theirs.exp() * (theirs - ours)).sum())
            told_of = kept.of(number)
            part += float(stored_logits.divergence(ours, told_of["ids"], told_of["logp"]).sum())
    return about["share"], abs(part - whole) / whole


def _teach(model: Any, examples: Any, padding: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        batch = [examples[(step * 32 + number) % len(examples)] for number in range(32)]
        length = max(len(example.input_ids) for example in batch)
        ids = torch.tensor([e.input_ids + [padding] * (length - len(e.input_ids)) for e in batch])
        labels = torch.tensor([e.labels + [-100] * (length - len(e.labels)) for e in batch])
        model(input_ids=ids, attention_mask=(ids != padding).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def peak(kind: str) -> float:
    """Bytes that a step takes at its height beyond what was there before it, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.distillation_divergence", kind]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    return float(made.stdout.splitlines()[-1])


def _step(kind: str) -> float:
    """Takes a first, smaller step for what is only loaded once, then measures one."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = {"distillation": _large_distillation, "sft": _large_sft}[kind](folder)
    made = _batch(trainer, kind)
    trainer.model.train()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the height begins anew
    trainer.compute_loss(trainer.model, made).backward()
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def _large(width: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=LARGE,
            hidden_size=width,
            num_hidden_layers=2,
            intermediate_size=2 * width,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
        )
    )


def _settings(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": ROWS,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])


def _large_distillation(folder: str) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DistillationConfig

    from pipelines.policy.on_policy import OnPolicyTrainer

    trainer = OnPolicyTrainer(
        model=_large(HIDDEN),
        teacher_model=_large(2 * HIDDEN),
        args=DistillationConfig(beta=0.5, **_settings(folder)),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * ROWS}),
        processing_class=AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny"),
        peft_config=_adapter(),
    )
    trainer.told = None
    return trainer


def _large_sft(folder: str) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    ids = list(range(PROMPT + ANSWER))
    return SFTTrainer(
        model=_large(HIDDEN),
        args=SFTConfig(**_settings(folder)),
        train_dataset=Dataset.from_dict({"input_ids": [ids] * ROWS, "labels": [ids] * ROWS}),
        processing_class=AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny"),
        peft_config=_adapter(),
    )


def _batch(trainer: Any, kind: str) -> Mapping[str, Any]:
    """The same tokens for both: of a prompt nothing is learnt."""
    torch.manual_seed(SEED)
    ids = torch.randint(LARGE, (ROWS, PROMPT + ANSWER))
    ones = torch.ones_like(ids)
    if kind == "sft":
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        return {"input_ids": ids, "attention_mask": ones, "labels": labels}
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": ones[:, :PROMPT],
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": ones[:, PROMPT:],
        "num_items_in_batch": torch.tensor(float(ROWS * ANSWER)),
    }


if __name__ == "__main__":
    print(_step(sys.argv[1]) if len(sys.argv) > 1 else json.dumps(measure(), indent=1))
