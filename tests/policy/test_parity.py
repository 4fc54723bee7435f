"""One model in several forms: what counts as the same, and what merging means over a base in 4 bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from pipelines.config.compose import compose
from pipelines.config.schema import Config
from pipelines.policy.adapter import peft_config
from pipelines.policy.attaching import attached, merged
from pipelines.policy.base import load_base, load_tokenizer, pin
from pipelines.policy.parity import Asking, Form, Likelihood, compared, difference, likelihoods, said

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = Asking([list(range(20, 32)), list(range(40, 47)), [60, 61, 62]], max_new_tokens=6)
ENDS = 5


def form(tokens: list[list[int]], *rows: list[tuple[float, float]]) -> Form:
    return Form(tokens, [[Likelihood(*pair) for pair in row] for row in rows])


REFERENCE = form([[1, 2, ENDS]], [(-0.5, 0.0), (-0.5, 0.0), (-0.1, 0.0)])


@pytest.mark.parametrize(
    ("other", "passed", "equal"),
    [
        (form([[1, 2, ENDS]], [(-0.5, 0.0), (-0.505, 0.0), (-0.1, 0.0)]), True, 1),
        (form([[1, 2, ENDS]], [(-0.5, 0.0), (-0.52, 0.0), (-0.1, 0.0)]), False, 1),
        # It parts where both tokens are as likely: rounding decides.
        (form([[1, 3, ENDS]], [(-0.5, 0.0), (-0.509, 0.015), (-0.1, 0.0)]), True, 0),
        (form([[1, 3, ENDS]], [(-0.5, 0.0), (-0.509, 0.021), (-0.1, 0.0)]), False, 0),
        (form([[]], [(-0.5, 0.0), (-0.5, 0.0), (-0.1, 0.0)]), False, 0),
        (form([[1, 2, ENDS]], [(float("nan"), 0.0), (-0.5, 0.0), (-0.1, 0.0)]), False, 1),
        (Form([[1, 2, ENDS]], None), True, 1),
        (Form([[1, 3, ENDS]], None), False, 0),
    ],
)
def test_what_counts_as_the_same(other: Form, passed: bool, equal: int) -> None:
    found = compared(REFERENCE, other, 0.01, "")
    assert (found["passed"], found["tokens_equal"], found["rows"]) == (passed, equal, 1)


def configured(small_model: Path, *overrides: str) -> Config:
    config = compose([f"model.id={small_model}", *overrides]).config
    return config.model_copy(update={"model": pin(config.model)})


def made(config: Config, folder: Path) -> Path:
    """An adapter of the configuration's method whose every weight is away from its beginning."""
    model = get_peft_model(
        load_base(config.model, config.adapter, config.compute), peft_config(config.adapter, config.model)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


def reference(config: Config, adapter: Path, tokenizer: Any) -> Form:
    with attached(load_base(config.model, config.adapter, config.compute).eval(), adapter) as model:
        return said(model, tokenizer, ASKED)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "rslora"])
def test_merged_weights_answer_as_the_adapter_does(name: str, small_model: Path, tmp_path: Path) -> None:
    config = configured(small_model, f"adapter={name}")
    adapter, tokenizer = made(config, tmp_path), load_tokenizer(config.model)
    ours = reference(config, adapter, tokenizer)
    base = load_base(config.model, config.adapter, config.compute).eval()
    bare = likelihoods(base, ASKED, ours.tokens)
    assert difference(bare, ours.likelihoods or []) > 0.001
    found = compared(ours, said(merged(base, adapter), tokenizer, ASKED, ours.tokens), 0.001, "")
    assert found["passed"]
    assert found["tokens_equal"] == 3


@pytest.mark.parametrize("name", ["prefix_tuning", "p_tuning"])
def test_a_learned_prompt_is_read_again_and_has_no_merged_form(name: str, small_model: Path, tmp_path: Path) -> None:
    config = configured(small_model, f"adapter={name}")
    adapter, tokenizer = made(config, tmp_path), load_tokenizer(config.model)
    ours = reference(config, adapter, tokenizer)
    base = load_base(config.model, config.adapter, config.compute).eval()
    assert difference(likelihoods(base, ASKED, ours.tokens), ours.likelihoods or []) > 0.001
    with attached(base, adapter) as model:
        again = said(model, tokenizer, ASKED, ours.tokens)
    assert compared(ours, again, 0.0, "")["passed"]
    with pytest.raises(ValueError, match="is no update of weights"):
        merged(base, adapter)


def test_an_adapter_of_a_4_bit_base_is_merged_into_what_it_was_trained_against(
    small_model: Path, tmp_path: Path
) -> None:
    config = configured(small_model, "adapter=qlora", "adapter.quantization.bnb_4bit_compute_dtype=float32")
    adapter, tokenizer = made(config, tmp_path), load_tokenizer(config.model)
    ours = reference(config, adapter, tokenizer)
    whole = merged(load_base(config.model, config.adapter, config.compute).eval(), adapter)
    found = compared(ours, said(whole, tokenizer, ASKED, ours.tokens), 0.001, "")
    assert found["passed"], found
    assert not [name for name, weight in whole.named_parameters() if hasattr(weight, "quant_state")]
    assert getattr(whole.config, "quantization_config", None) is None
    # On the published weights the same adapter is another model.
    plain = config.adapter.model_copy(update={"quantization": None})
    published = merged(load_base(config.model, plain, config.compute).eval(), adapter)
    other = compared(ours, said(published, tokenizer, ASKED, ours.tokens), 0.001, "")
    assert not other["passed"]
    assert other["max_logprob_difference"] > 10 * found["max_logprob_difference"]
