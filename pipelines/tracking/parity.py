"""Every form in which a version may be used, held against the adapter in memory: `parity.json` and `answers.json`."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.pyfunc import PyFuncModel
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.attaching import attached, merged
from pipelines.policy.base import load_base, load_tokenizer_from, template_switches
from pipelines.policy.parity import (
    NOTHING,
    Asking,
    Form,
    Prompt,
    asking,
    compared,
    difference,
    likelihoods,
    said,
    tolerance_of,
    written,
)
from pipelines.policy.soundness import WEIGHTS
from pipelines.product import Product
from pipelines.tracking import forms as served
from pipelines.tracking.forms import Record

NO_UPDATE = ("prefix_tuning", "p_tuning")
APART = "nf4_base_to_16bit"  # measured and stated; what was trained against 4-bit weights may mean another thing there


@dataclass(frozen=True)
class Measured:
    """The forms by name, as `parity.json` has them, and the answers of the reference, as `answers.json` has them."""

    forms: dict[str, dict[str, Any]]
    answers: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        return all(form["passed"] for name, form in self.forms.items() if name != APART)


def measure(config: Config, adapter: Product, prompts: Sequence[Prompt], write: Callable[[], Path]) -> Measured:
    """Asks the prompts of the adapter in memory, on the base as it was trained, and then of every other form.

    `write` writes the model once the base is there, and returns its folder. The base is loaded once for the adapter in
    memory, the reloaded and the merged one, and again by MLflow. Raises UserError where the adapter changes nothing of
    the base, RuntimeError where it doesn't answer as it was evaluated.
    """
    comparing = _Comparing(config, prompts)
    base = load_base(config.model, config.adapter, config.compute).eval()
    comparing.refer(base, adapter.folder)
    folder = write()
    copy = folder / "artifacts" / "adapter"
    with attached(base, copy) as model:
        _check_whole(model, copy)
        comparing.take("reloaded", model, copy, "the adapter as it is written")
    if config.package.parity.merged:
        _merge(comparing, base, copy)
    del base, model
    _let_go()
    if config.package.parity.merged and config.adapter.quantization is not None:
        _on_published(comparing, copy)
        _let_go()
    loaded = served.loaded(folder)
    comparing.take_pyfunc(loaded)
    if config.package.parity.endpoint:
        comparing.take_endpoint(loaded)
    return Measured(comparing.forms, comparing.answers())


def _merge(comparing: "_Comparing", base: Any, adapter: Path) -> None:
    config = comparing.config
    if config.adapter.method in NO_UPDATE:
        comparing.forms["merged"] = compared(Form([], []), Form([], []), comparing.tolerance, "has no merged form")
        return
    quantized = config.adapter.quantization is not None
    note = "4-bit weights as they were trained against, in 16 bit" if quantized else "in the weights of the base"
    comparing.take("merged", merged(base, adapter), adapter, note)


def _on_published(comparing: "_Comparing", adapter: Path) -> None:
    """The adapter on the base as it is published: how far that is from what was trained."""
    config = comparing.config
    plain = config.adapter.model_copy(update={"quantization": None})
    with attached(load_base(config.model, plain, config.compute).eval(), adapter) as model:
        comparing.take(APART, model, adapter, "on the published weights, which it was not trained against")


def _check_whole(model: Any, folder: Path) -> None:
    """peft leaves what a file lacks as it begins, and what no module takes unread, both with a warning."""
    file, loaded = load_file(folder / WEIGHTS), get_peft_model_state_dict(model)
    for name in sorted({*file, *loaded}):
        if name not in file or name not in loaded or not torch.equal(file[name].float(), loaded[name].float().cpu()):
            raise UserError(f"{folder / WEIGHTS}: {name} isn't what the loaded adapter has: it is of another base")


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Comparing:
    """The reference, and what has been compared with it."""

    def __init__(self, config: Config, prompts: Sequence[Prompt]) -> None:
        self.config, self.prompts = config, prompts
        self.tolerance = tolerance_of(config.package.parity.tolerance, config.compute, config.adapter)
        self.forms: dict[str, dict[str, Any]] = {}
        self.texts: list[str] = []
        self.reference = Form([], [])

    def refer(self, base: Any, adapter: Path) -> None:
        """Takes the adapter in memory as the reference."""
        tokenizer, asked = self._asking(adapter)
        with attached(base, adapter) as model:
            self.reference = said(model, tokenizer, asked)
            self.texts = written(model, tokenizer, self.reference.tokens)
        bare = likelihoods(base, asked, self.reference.tokens)
        if difference(bare, self.reference.likelihoods or []) <= NOTHING:
            raise UserError(f"package.adapter: {adapter}: the base answers the same without it: it changes nothing")
        for prompt, text in zip(self.prompts, self.texts, strict=True):
            if prompt.evaluated is not None and prompt.evaluated != text:
                raise RuntimeError(
                    f"row {prompt.row_id}: evaluated answer {prompt.evaluated!r}, the adapter answers {text!r}"
                )

    def take(self, name: str, model: Any, adapter: Path, note: str) -> None:
        tokenizer, asked = self._asking(adapter)
        self._compare(name, said(model, tokenizer, asked, self.reference.tokens), note)

    def take_pyfunc(self, model: PyFuncModel) -> None:
        """The registered model: its answers through MLflow, its tokens and likelihoods from what it has loaded."""
        inner = model.unwrap_python_model()
        asked = asking(inner.tokenizer, self.prompts, inner.template, inner.max_new_tokens)
        form = said(inner.model, inner.tokenizer, asked, self.reference.tokens)
        replies = served.answered(model, self._records())
        tokens = [own if self._is(i, replies[i]) else [] for i, own in enumerate(form.tokens)]
        self._compare("pyfunc", Form(tokens, form.likelihoods), _told("as MLflow loads it", replies))

    def take_endpoint(self, model: PyFuncModel) -> None:
        """Over HTTP there are texts and counts of tokens only."""
        replies = served.answered_over_http(model, self._records())
        tokens = [own if self._is(i, replies[i]) else [] for i, own in enumerate(self.reference.tokens)]
        note = _told("MLflow's scoring server, texts and counts of tokens", replies)
        self._compare("endpoint", Form(tokens, None), note)

    def answers(self) -> list[dict[str, Any]]:
        return [
            {
                "row_id": prompt.row_id,
                "messages": [dict(message) for message in prompt.messages],
                "tools": [dict(tool) for tool in prompt.tools] if prompt.tools else None,
                "answer": text,
                "tokens": tokens,
            }
            for prompt, text, tokens in zip(self.prompts, self.texts, self.reference.tokens, strict=True)
        ]

    def _asking(self, adapter: Path) -> tuple[Any, Asking]:
        tokenizer = load_tokenizer_from(adapter)
        switches, limit = template_switches(self.config.model), self.config.evaluate.max_new_tokens
        return tokenizer, asking(tokenizer, self.prompts, switches, limit)

    def _records(self) -> list[Record]:
        return [
            {"messages": list(prompt.messages)} | ({"tools": list(prompt.tools)} if prompt.tools else {})
            for prompt in self.prompts
        ]

    def _is(self, row: int, reply: Record) -> bool:
        """Whether a completion is the reference's answer to that row."""
        if "error" in reply:
            return False
        text, count = reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]
        return bool(text == self.texts[row] and count == len(self.reference.tokens[row]))

    def _compare(self, name: str, form: Form, note: str) -> None:
        self.forms[name] = compared(self.reference, form, self.tolerance, note)


def _told(what: str, replies: Sequence[Record]) -> str:
    """The note of a form, with the first error that it answered."""
    error = next((" ".join(str(reply["error"]).split())[:300] for reply in replies if "error" in reply), None)
    return what if error is None else f"{what}; {error}"
