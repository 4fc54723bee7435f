"""The plan's memory against published peaks, and against simulations of the real model code at true size.

`python -m benchmarks.plan --write` renews the table of benchmarks/plan.md. Published settings are modelled by what
their code does, stated beside each. Simulated rows are the project's own stack: peft, transformers' loss, AdamW.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.config.block import Quantization
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Adapter
from pipelines.planning.computed import simulated
from pipelines.planning.facts import Facts
from pipelines.planning.injection import counts_of, trainable_of
from pipelines.planning.keep import adapter_of, profile_of
from pipelines.planning.memory import GIB, Job, predict

NF4 = Quantization(
    bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16", experts=False
)
GPTQ = 0.5 + 2 / 128 + 0.5 / 128  # bytes: a 16-bit scale and a 4-bit zero for each group of 128
GPTQ_UNPACKING = 5.0  # AutoGPTQ's trainable path shifts all of a weight as int32, then copies it to int8
LLAMA: dict[str, Any] = {"architecture": "LlamaForCausalLM", "model_type": "llama", "tie_word_embeddings": False}
LLAMA31_8B = LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA2_7B = LLAMA | {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA_65B = LLAMA | {
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
}
# Qwen-72B is Llama's shape with a bias on the attention's input, which is one product (c_attn), as Phi-3 has it.
QWEN_72B = LLAMA | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 24576,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "attention_bias": True,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Published:
    """A published peak, with its unit in bytes, and the setting that gave it.

    `process` says that the process's whole use of the card was read, CUDA's context with it; `bound` that only an upper
    limit was published, which is checked and in no error.
    """

    name: str
    settings: Mapping[str, Any]
    rank: int
    targets: list[str]
    job: Job
    value: float
    unit: int
    process: bool
    bound: bool
    how: str


def published() -> Iterator[Published]:
    """The rows, and how each was read."""
    # torchtune: bfloat16 throughout, checkpointing, AdamW. The loss takes eight chunks, but all logits are there in
    # bfloat16; compiled, it keeps no float32 copy of them: 2 bytes, and those of one chunk's gradient.
    tune = Job(2, 2048, True, masked=False, logit_bytes=2.25, adapter_width=2)
    how = "all logits in bf16 (chunked, compiled loss), adapter in bf16"
    tuned = ("torchtune Llama-3.1-8B", LLAMA31_8B, 8, ALL_LINEAR)
    yield Published(f"{tuned[0]} LoRA 2x2048", *tuned[1:], tune, 16.2, GIB, False, False, how)
    yield Published(
        f"{tuned[0]} QLoRA 2x2048", *tuned[1:], replace(tune, quantization=NF4), 7.4, GIB, False, False, how
    )
    # Qwen: fp16 under DeepSpeed ZeRO-2 on one card, bucket of 2e8; logits, their shifted copy and log-softmax in fp16
    # forward, log-softmax and two gradients backward: 6 bytes. Taken as the process's use of the card.
    qwen = Job(
        1,
        256,
        True,
        "float16",
        NF4,
        packed_bytes=GPTQ,
        masked=False,
        unpacking_bytes=GPTQ_UNPACKING,
        logit_bytes=6.0,
        strategy="zero2",
        bucket=2 * 10**8,
    )
    lengths = {256: 61.4, 512: 61.4, 1024: 62.9, 2048: 64.1, 4096: 68.0, 8192: 75.6}
    for length, value in lengths.items():
        job = replace(qwen, length=length)
        how = "fp16 under ZeRO-2 (master weights, buckets), GPTQ, three fp16 copies of all logits"
        yield Published(
            f"Qwen-72B Q-LoRA r64 1x{length}", QWEN_72B, 64, ALL_LINEAR, job, value, 10**9, True, False, how
        )
    # peft's recipe for 4 bit (prepare_model_for_kbit_training): embedding, head and norms in float32, and with them the
    # residual stream; transformers' loss of 2023: logits in bf16, float32, shifted and log-softmax: 14 bytes.
    kbit = Job(4, 1024, True, quantization=NF4, masked=False, logit_bytes=14.0, residual=4, unquantized_width=4)
    kbit = replace(kbit, adapter_width=4)
    how = "float32 embedding, head, norms and residual stream (prepare_model_for_kbit_training), float32 logits"
    yield Published(
        "LLaMA-2-7B r8 4-bit 4x1024", LLAMA2_7B, 8, ["q_proj", "v_proj"], kbit, 9.0, 10**9, True, False, how
    )
    # QLoRA's own code: head and embedding in bfloat16, adapters in bfloat16, paged AdamW in 32 bit, micro-batch 1.
    paper = Job(1, 512, True, quantization=NF4, masked=False, logit_bytes=14.0, optim="paged_adamw_32bit", residual=4)
    how = "fits 48 GB, as the paper says; it publishes no exact peak"
    yield Published("QLoRA paper 65B r64 1x512", LLAMA_65B, 64, ALL_LINEAR, paper, 48.0, GIB, True, True, how)


# (profile, micro-batch, length, checkpointing, head, bfloat16 adapter). The fused head's Triton tiles have no CPU
# counterpart (its fallback keeps many times more), so layers are simulated without a head, or with all logits.
SIMULATED = (
    ("qwen3_0_6b", 1, 2048, True, "none", False),
    ("qwen3_0_6b", 2, 2048, True, "stock", False),
    ("qwen3_0_6b", 1, 2048, False, "stock", False),
    ("qwen3_0_6b", 1, 4096, False, "none", True),
    ("qwen3_8b", 1, 2048, True, "stock", False),
    ("qwen3_8b", 2, 2048, True, "none", False),
    ("qwen3_8b", 1, 2048, False, "none", False),
)
STOCK_BYTES = 12.0  # of transformers 5.23's loss: logits and log-softmax, one of them and its gradient in float32


@dataclass(frozen=True)
class Line:
    """One row of the table; sizes in GiB."""

    name: str
    kind: str
    predicted: float
    known: float
    how: str

    @property
    def error(self) -> float:
        """Over (positive) or under what is known, as a share of it."""
        return self.predicted / self.known - 1


def lora(targets: list[str], rank: int, quantized: bool) -> Adapter:
    """LoRA of a rank over targets."""
    model = profile_of("qwen3_8b")
    return adapter_of("qlora" if quantized else "lora", model, r=rank, target_modules=targets)


def qwen_trainable(row: Published) -> int:
    """LoRA on Qwen's c_attn, counted on Phi-3's fused qkv_proj of the same shape, and on its other products."""
    model = profile_of("qwen3_8b")
    fused = dict(row.settings) | {"architecture": "Phi3ForCausalLM", "model_type": "phi3", "pad_token_id": 0}
    fused.pop("attention_bias")
    attention = trainable_of(fused, model, lora(["qkv_proj"], row.rank, True))
    return attention + trainable_of(row.settings, model, lora(ALL_LINEAR[3:], row.rank, True))


def published_line(row: Published, known: dict[str, Facts]) -> Line:
    """The plan's figure beside the published one."""
    key = f"{row.settings} {row.rank} {row.targets} {row.job.adapter_width}"
    if key not in known:
        model = profile_of("qwen3_8b")
        adapter = lora(row.targets, row.rank, row.job.adapter_width != 4)
        trainable = trainable_of(row.settings, model, adapter) if row.settings is not QWEN_72B else qwen_trainable(row)
        kept = simulated(row.settings, model, adapter)
        known[key] = Facts(counts_of(row.settings), trainable, kept, kept=False)
    memory = predict(known[key], row.job)
    predicted = memory.total if row.process else memory.allocated
    return Line(row.name, "bound" if row.bound else "published", predicted / GIB, row.value * row.unit / GIB, row.how)


def simulated_line(name: str, batch: int, length: int, checkpointing: bool, head: str, bf16: bool) -> Line:
    """The plan's figure beside a simulation of all layers at true size."""
    from pipelines.planning.architecture import settings_of
    from pipelines.planning.facts import kept_facts
    from pipelines.planning.simulation import simulate
    from pipelines.policy.adapter import peft_config

    model = profile_of(name)
    adapter = adapter_of("qlora" if bf16 else "lora", model)
    facts = kept_facts(model, adapter, settings_of(model))
    assert facts is not None, name
    found = simulate(settings_of(model), peft_config(adapter, model), (batch, length), checkpointing, head, bf16)
    logit_bytes = STOCK_BYTES if head == "stock" else 0.0
    job = Job(batch, length, checkpointing, logit_bytes=logit_bytes, adapter_width=2 if bf16 else 4)
    predicted = predict(facts, job)
    what = "all logits" if head == "stock" else "layers alone"
    title = f"{name} {batch}x{length} {'checkpointed' if checkpointing else 'whole'}, {what}"
    how = f"{'bf16' if bf16 else 'fp32'} adapter r32; simulated under FakeTensorMode"
    return Line(title, "simulated", predicted.allocated / GIB, found.peak / GIB, how)


def lines() -> list[Line]:
    """All rows."""
    known: dict[str, Facts] = {}
    return [*(published_line(row, known) for row in published()), *(simulated_line(*row) for row in SIMULATED)]


def plan_cpu_seconds() -> dict[str, float]:
    """CPU-seconds of a 70B plan: with kept facts, and with everything computed."""
    script = (
        "import sys; from pipelines.config.compose import compose; from pipelines.planning.plan import planned;"
        "from pipelines.planning.report import terminal; terminal(planned(compose(sys.argv[1:]).config))"
    )
    given = ["model=llama_3_3_70b", "adapter=qlora", "compute=gpu_80gb"]
    asked = {"plan_cpu_s": given, "plan_computed_cpu_s": [*given, "adapter.peft.r=48"]}
    return {name: _child_seconds(script, words) for name, words in asked.items()}


def _child_seconds(script: str, words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script, *words], check=True, cwd=PROJECT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure() -> dict[str, Any]:
    """The bars' figures and the rows behind them; errors are shares, bounds are in none of them."""
    rows = lines()
    errors = [row.error for row in rows if row.kind != "bound"]
    return {
        **plan_cpu_seconds(),
        "plan_median_error": median(abs(error) for error in errors),
        "plan_worst_error": max(abs(error) for error in errors),
        "plan_worst_under": max(0.0, -min(errors)),
        "rows": [
            {
                "name": r.name,
                "kind": r.kind,
                "predicted_gib": r.predicted,
                "known_gib": r.known,
                "error": r.error,
                "how": r.how,
            }
            for r in rows
        ],
    }


def shown(row: Mapping[str, Any]) -> str:
    """The known figure and the error, as two cells."""
    if row["kind"] == "bound":
        return f"< {row['known_gib']:.2f} | {'holds' if row['error'] < 0 else 'broken'}"
    return f"{row['known_gib']:.2f} | {row['error']:+.1%}"


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table for people."""
    head = ["| setting | | predicted GiB | known GiB | error | modelled as |", "|---|---|-:|-:|-:|---|"]
    body = [
        f"| {r['name']} | {r['kind']} | {r['predicted_gib']:.2f} | {shown(r)} | {r['how']} |" for r in found["rows"]
    ]
    return "\n".join([*head, *body])


if __name__ == "__main__":
    result = measure()
    print(as_markdown(result))
    print({name: value for name, value in result.items() if name != "rows"})
    if "--write" in sys.argv:
        path = Path(__file__).with_suffix(".md")
        before, _, _ = path.read_text(encoding="utf-8").partition("| setting |")
        path.write_text(before + as_markdown(result) + "\n", encoding="utf-8")
