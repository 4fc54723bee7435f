"""Each form: how its folder is written, and who answers from it."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines import apart
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.exporting import gguf
from pipelines.exporting.answering import PROGRAMS, ProgramSubject
from pipelines.exporting.materials import Materials
from pipelines.exporting.modelfile import modelfile, roles_of
from pipelines.exporting.precheck import COMPRESSED
from pipelines.policy.template import texts
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.opening import Planned, opened
from pipelines.subjects.subject import Subject

ADAPTER_FILE, BASE_FILE = "adapter-f16.gguf", "base-f16.gguf"


@dataclass(frozen=True)
class Making:
    """What all forms share: the configuration as the version was made, its materials, and what it is asked with.

    `rows` are conversations as token ids, for the forms that look at some; `ends` are the tokens that end an answer.
    """

    config: Config
    materials: Materials
    rows: Sequence[Sequence[int]]
    ends: Sequence[int]
    limit: int

    @property
    def tokenizer(self) -> Any:
        return self.materials.version.tokenizer

    @property
    def template(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.materials.version.settings["template"]
        return found


def write(form: str, making: Making, folder: Path) -> str:
    """Writes the form's folder; returns what a reader has to know about it. Raises UserError where it can't be one."""
    folder.mkdir(parents=True)
    return _WRITERS[form](form, making, folder)


@contextmanager
def subject(form: str, making: Making, folder: Path) -> Iterator[Subject]:
    """Whoever answers from the form's files."""
    if form.startswith("gguf"):
        yield _llama(form, making, folder)
    elif form in COMPRESSED:
        yield _apart(form, making, folder)
    elif form == "int8":
        yield _int8(form, making, folder)
    else:
        yield from _opened(form, making.config, folder)


def _merged(form: str, making: Making, folder: Path) -> str:
    shutil.copytree(making.materials.merged, folder, dirs_exist_ok=True)
    quantization = making.config.adapter.quantization
    if quantization is None:
        return ""
    return f"the base is what its {quantization.bnb_4bit_quant_type} weights mean, not the published ones"


def _gguf(form: str, making: Making, folder: Path) -> str:
    target = folder / gguf.F16
    if form == "gguf":
        shutil.copyfile(making.materials.f16, target)
    else:
        kind = gguf.QUANTISED[form]
        target = folder / f"model-{kind.lower()}.gguf"
        gguf.quantise(making.materials.f16, target, kind)
    _add_modelfile(making, folder, target.name, None)
    return ""


def _gguf_adapter(form: str, making: Making, folder: Path) -> str:
    gguf.convert(making.materials.base, folder / BASE_FILE)
    gguf.convert_adapter(making.materials.version.adapter, making.materials.base, folder / ADAPTER_FILE)
    _add_modelfile(making, folder, BASE_FILE, ADAPTER_FILE)
    return f"the adapter's own file is {(folder / ADAPTER_FILE).stat().st_size / 1e6:,.2f} MB of it"


def _add_modelfile(making: Making, folder: Path, weights: str, adapter: str | None) -> None:
    def rendered(messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        return texts(making.tokenizer, [messages], [None], making.template, prompt)[0]

    stops = [making.tokenizer.decode([token]) for token in making.ends]
    text = modelfile(weights, adapter, roles_of(rendered), stops, making.limit)
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _int8_written(form: str, making: Making, folder: Path) -> str:
    from transformers import BitsAndBytesConfig

    model = _architecture(making).from_pretrained(
        str(making.materials.merged),
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=getattr(torch, making.materials.dtype),
        device_map=making.config.compute.device,
        trust_remote_code=False,
    )
    model.save_pretrained(folder)
    making.tokenizer.save_pretrained(folder)
    return ""


def _compressed(form: str, making: Making, folder: Path) -> str:
    settings = making.config.export.calibration
    asked = {
        "model": str(making.materials.merged),
        "target": str(folder),
        "form": form,
        "seed": making.config.seed,
        "max_tokens": settings.max_tokens,
        "rows": [] if form == "fp8" else making.rows,
    }
    with tempfile.TemporaryDirectory() as temporary:
        question = Path(temporary) / "asked.json"
        question.write_text(json.dumps(asked), encoding="utf-8")
        command = [str(apart.python("quantize", "export.forms")), "-I", str(PROGRAMS / "compress.py"), str(question)]
        # It writes logs into the folder where it is started.
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"export.forms: {form}: llm-compressor refuses this model: {done.stderr.strip().splitlines()[-1]}"
        )
    making.tokenizer.save_pretrained(folder)
    looked = "" if form == "fp8" else f"; {len(making.rows):,} rows of {settings.split} were looked at"
    if making.config.compute.device == "cpu":
        return f"judged on the CPU with its weights decompressed, so its speed says nothing about a GPU's{looked}"
    return looked.removeprefix("; ")


def _llama(form: str, making: Making, folder: Path) -> ProgramSubject:
    lone = form != "gguf_adapter"
    (weights,) = folder.glob("model-*.gguf" if lone else BASE_FILE)
    adapter = None if lone else str(folder / ADAPTER_FILE)
    asked = {"model": str(weights), "adapter": adapter, "threads": torch.get_num_threads(), "ends": list(making.ends)}
    return _program(form, making, "gguf", "llama_answer.py", asked)


def _apart(form: str, making: Making, folder: Path) -> ProgramSubject:
    compute = making.config.compute
    asked = {
        "model": str(folder),
        "device": compute.device,
        "dtype": compute.dtype,
        "ends": list(making.ends),
        "pad": making.tokenizer.pad_token_id,
    }
    return _program(form, making, "quantize", "model_answer.py", asked)


def _program(form: str, making: Making, environment: str, program: str, asked: Mapping[str, Any]) -> ProgramSubject:
    size = making.config.compute.eval_batch_size
    about = {"form": form}
    return ProgramSubject(form, about, environment, program, asked, making.tokenizer, making.template, size)


def _int8(form: str, making: Making, folder: Path) -> LocalSubject:
    compute = making.config.compute
    model = _architecture(making).from_pretrained(
        str(folder), dtype=getattr(torch, compute.dtype), device_map=compute.device, trust_remote_code=False
    )
    about, size = {"form": form}, compute.eval_batch_size
    return LocalSubject(form, about, model.eval(), making.tokenizer, making.template, size, making.config.seed)


def _opened(form: str, config: Config, folder: Path) -> Iterator[Subject]:
    """The folder as `evaluate` opens a subject of kind model."""
    settings = next(iter(config.evaluate.subjects.values()))
    as_model = settings.model_copy(update={"kind": "model", "at": str(folder)})
    yield from opened(config, [Planned(form, as_model, {"form": form})])


def _architecture(making: Making) -> Any:
    import transformers

    return getattr(transformers, making.config.model.architecture)


_WRITERS: dict[str, Callable[[str, Making, Path], str]] = {
    "merged": _merged,
    "gguf": _gguf,
    "gguf_q8_0": _gguf,
    "gguf_q4_k_m": _gguf,
    "gguf_adapter": _gguf_adapter,
    "int8": _int8_written,
    **dict.fromkeys(COMPRESSED, _compressed),
}
