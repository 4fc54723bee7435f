"""What is read from the installed sources is what the classes are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipelines.config import upstream
from pipelines.config.schema import Adapter
from pipelines.config.teaching import METHODS
from pipelines.config.validate import OF_METHOD, OWNED, PEFT_CLASSES, TRAINERS


def real(cls: str) -> Any:
    import peft
    import trl
    import trl.experimental.gold

    found = [getattr(module, cls, None) for module in (trl, trl.experimental.gold, peft)]
    return next(one for one in found if one is not None)


@pytest.mark.parametrize("cls", upstream.SOURCES)
def test_field_names_are_those_of_the_class(cls: str) -> None:
    assert set(upstream.fields(cls)) == {field.name for field in dataclasses.fields(real(cls)) if field.init}


@pytest.mark.parametrize("cls", upstream.SOURCES)
def test_types_take_the_classes_own_defaults(cls: str) -> None:
    checked = 0
    for field in dataclasses.fields(real(cls)):
        if field.init and isinstance(field.default, str | int | float | list | dict | None):
            default = getattr(field.default, "value", field.default)
            if default is not None and field.name not in OWNED["adapter.peft"]:
                upstream.check(cls, field.name, default)
                checked += 1
    assert checked > 0


def test_methods_are_those_of_the_schema() -> None:
    assert set(PEFT_CLASSES) == set(get_args(Adapter.model_fields["method"].annotation))
    assert {*TRAINERS.values(), *OF_METHOD.values(), *PEFT_CLASSES.values()} == set(upstream.SOURCES)
    assert set(OF_METHOD) < set(METHODS)


def test_tables_name_existing_fields() -> None:
    every = {name for cls in upstream.SOURCES for field in upstream.fields(cls) for name in (field, f"{cls}.{field}")}
    assert upstream.RANGES.keys() <= every
    assert OWNED["sft.trainer"].keys() <= upstream.fields("SFTConfig").keys()
    assert OWNED["adapter.peft"].keys() <= set().union(*(upstream.fields(cls) for cls in PEFT_CLASSES.values()))


@pytest.mark.parametrize(
    ("cls", "name", "good", "bad"),
    [
        ("SFTConfig", "optim", "adamw_torch", "adamw"),
        ("SFTConfig", "lr_scheduler_type", "linear", "triangle"),
        ("SFTConfig", "truncation_mode", "keep_start", "keep_middle"),
        ("SFTConfig", "ddp_backend", None, "smoke_signals"),
        ("SFTConfig", "learning_rate", 1e-4, float("nan")),
        ("SFTConfig", "max_steps", -1, True),
        ("SFTConfig", "greater_is_better", False, 0),
        ("LoraConfig", "init_lora_weights", "pissa_niter_16", "pissa_niter_[number of iters]"),
        ("LoraConfig", "init_lora_weights", True, "pisa"),
        ("LoraConfig", "target_modules", "all-linear", 3),
        ("LoraConfig", "target_modules", ["q_proj"], [3]),
        ("PromptEncoderConfig", "encoder_reparameterization_type", "LSTM", "GRU"),
    ],
)
def test_a_value_is_checked(cls: str, name: str, good: object, bad: object) -> None:
    upstream.check(cls, name, good)
    with pytest.raises(ValidationError):
        upstream.check(cls, name, bad)


@pytest.fixture
def another_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A trl of another version, found before the installed one."""
    folder = tmp_path / "trl" / "trainer"
    folder.mkdir(parents=True)
    (tmp_path / "trl" / "__init__.py").touch()
    (folder / "base_config.py").write_text("class _BaseConfig(TrainingArguments):\n    of_the_base: int = 1\n")
    (folder / "sft_config.py").write_text("class SFTConfig(_BaseConfig):\n    of_tomorrow: bool | None = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    upstream._fields.cache_clear()
    yield
    upstream._fields.cache_clear()


@pytest.mark.usefixtures("another_trl")
def test_the_installed_version_is_what_is_read() -> None:
    found = upstream.fields("SFTConfig")
    assert found["of_tomorrow"] == bool | None
    assert {"of_the_base", "learning_rate"} <= found.keys()
    assert "packing" not in found
