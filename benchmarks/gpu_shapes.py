"""Models of real shapes with random weights, made where they will run, and the floating-point operations of a token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Qwen2Config, Qwen3Config

SPREAD = 0.02  # of every matrix, as the published models are initialised
GROUPED = {"num_key_value_heads": 8, "head_dim": 128}
LLAMA = GROUPED | {"vocab_size": 128256, "tie_word_embeddings": False, "rope_theta": 500000.0}
QWEN = GROUPED | {"vocab_size": 151936, "rope_theta": 1000000.0}
# Each from the config.json of the model on the Hub.
SHAPES: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen3-0.6b": (
        Qwen3Config,
        QWEN
        | {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072}
        | {"tie_word_embeddings": True},
    ),
    "qwen3-4b": (
        Qwen3Config,
        QWEN
        | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728}
        | {"tie_word_embeddings": True},
    ),
    "qwen3-8b": (
        Qwen3Config,
        QWEN
        | {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
        | {"tie_word_embeddings": False},
    ),
    "qwen2.5-7b": (
        Qwen2Config,
        {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "intermediate_size": 18944}
        | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "rope_theta": 1000000.0},
    ),
    "llama-3.1-8b": (
        LlamaConfig,
        LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    ),
    "llama-3.3-70b": (
        LlamaConfig,
        LLAMA | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
    ),
}
TOY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TOY |= {"head_dim": 16, "intermediate_size": 128, "vocab_size": 3200}


def shape(name: str, toy: bool = False) -> Any:
    """The transformers configuration of `name`, shrunk where only the code is tried."""
    cls, settings = SHAPES[name]
    return cls(**{**settings, **(TOY if toy else {}), "max_position_embeddings": 32768, "use_cache": False})


def random_model(
    config: Any, dtype: torch.dtype, device: str, attention: str, quantization: BitsAndBytesConfig | None = None
) -> Any:
    """The model with normal random weights on `device`, and never whole anywhere else.

    With `quantization` every matrix but the head is made in `dtype` and quantised before the next is made: 70 billion
    parameters need no more than their 4-bit form and one matrix.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if quantization is not None:
        _replace_matrices(model, quantization)
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by the one it replaces, so what is tied stays tied
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = (old, _filled(module, name, old, device))
                module._parameters[name] = made[id(old)][1]
    rotary = model.model.rotary_emb  # it computed its frequencies on no device
    with torch.device(device):
        model.model.rotary_emb = type(rotary)(model.config)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"{left[0]} has no values")
    return model


def _replace_matrices(model: Any, quantization: BitsAndBytesConfig) -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers import AutoHfQuantizer

    replace_with_bnb_linear(model, ["lm_head"], quantization)
    # What from_pretrained leaves on a quantised model, which peft and the trainers ask for.
    model.hf_quantizer = AutoHfQuantizer.from_config(quantization)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = quantization.quant_method
    model.config.quantization_config = quantization


def _filled(module: nn.Module, name: str, old: nn.Parameter, device: str) -> nn.Parameter:
    dtype = torch.bfloat16 if old.dtype == torch.uint8 else old.dtype
    values = torch.empty(old.shape, dtype=dtype, device=device)
    if old.dim() == 1:
        values.fill_(0.0 if name == "bias" else 1.0)
    else:
        values.normal_(0.0, SPREAD)
    if type(old) is nn.Parameter:
        return nn.Parameter(values, requires_grad=old.requires_grad)
    import bitsandbytes

    settings: Any = old  # a Params4bit
    made: nn.Parameter = bitsandbytes.nn.Params4bit(
        values,
        requires_grad=False,
        quant_type=settings.quant_type,
        compress_statistics=settings.compress_statistics,
        quant_storage=settings.quant_storage,
        module=module,
    ).to(device)
    return made


def nf4(compute: torch.dtype, double: bool) -> BitsAndBytesConfig:
    """4-bit NormalFloat, Dettmers et al. 2023; `double`: the scales are quantised too."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
    )


@dataclass(frozen=True)
class Work:
    """Parameters that a token is multiplied with: `body` of the layers, `head`, `adapter`; and attention's size."""

    body: int
    head: int
    adapter: int
    layers: int
    width: int

    def model_flops(self, attended: float) -> float:
        """Operations that a LoRA step needs for a token, forward and backward.

        A frozen matrix 2 forward and 2 backward for each parameter, an adapter's 2 more for its own gradient; causal
        attention 6 x layers x width x `attended`, the length of a token's row (of rows of several lengths their sum of
        squares over their sum).
        """
        attention = 6 * self.layers * self.width * attended
        return 4 * (self.body + self.head) + 6 * self.adapter + attention

    def recomputed_flops(self, attended: float) -> float:
        """What full checkpointing computes again: one more forward pass through the layers."""
        return 2 * self.body + 2 * self.layers * self.width * attended


def work_of(config: Any, adapter: int) -> Work:
    """`Work` of a model, from its modules; `adapter` is the number of trained parameters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    head = sizes.pop("lm_head")
    width = config.num_attention_heads * model.model.layers[0].self_attn.head_dim
    return Work(sum(sizes.values()), head, adapter, config.num_hidden_layers, width)
