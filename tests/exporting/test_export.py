"""The stage: a version in other forms, judged beside its adapter, and told to the registry."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import apart
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.exporting.programs.llama_convert import UNNAMED
from pipelines.product import load
from tests.conftest import World

FEW = ("export.max_rows=12", "export.alone_rows=2")


def lacks(name: str) -> bool:
    return not (PROJECT / f".venv-{name}/bin/python").exists()


def exported(world: World, *overrides: str) -> tuple[dict[str, Any], Path]:
    """What export says of its product, and its folder."""
    before = set((world.folder / "outputs/export").glob("*/manifest.json"))
    assert world.run("export", *FEW, *overrides) == 0
    (made,) = set((world.folder / "outputs/export").glob("*/manifest.json")) - before
    return load(made.parent).about, made.parent


def tag(world: World, form: str) -> dict[str, Any]:
    mlflow.set_tracking_uri(world.store)
    version = MlflowClient().get_model_version_by_alias(world.folder.name, "candidate")
    found: dict[str, Any] = json.loads(version.tags[f"export.{form}"])
    return found


def test_merged_and_int8_are_folders_that_load_judged_and_on_record(
    finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    about, folder = exported(finished, "forms=[merged,int8]", "dtype=float32")
    said = capsys.readouterr().out
    assert "against the adapter" in said
    for form in ("merged", "int8"):
        listed = json.loads((folder / form / "files.json").read_text(encoding="utf-8"))
        assert {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= listed.keys()
        assert "NOTICE.md" in listed
        assert tag(finished, form) == {k: v for k, v in about["forms"][form].items() if k != "identity"}
        assert about["forms"][form]["heldout"] == about["heldout"]
    assert about["forms"]["merged"]["same"] == 1.0
    assert about["forms"]["int8"]["size"] < about["forms"]["merged"]["size"]
    page = (folder / "EXPORT.md").read_text(encoding="utf-8")
    assert f"| merged | {about['forms']['merged']['size'] / 1e6:,.1f} MB |" in page
    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder / "merged").chat_template
    assert AutoModelForCausalLM.from_pretrained(folder / "int8").is_loaded_in_8bit


def test_a_version_named_by_its_uri_is_made_anew_only_where_it_is_another(
    finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"model=models:/{finished.folder.name}@candidate"
    exported(finished, uri)
    capsys.readouterr()
    assert finished.run("export", *FEW, uri) == 0
    assert "export: reused from run" in capsys.readouterr().out
    assert finished.run("export", *FEW, "model=models:/no_such@candidate") == 2
    assert "export.model: models:/no_such@candidate" in capsys.readouterr().err


def test_a_missing_environment_is_told_before_anything_is_opened(
    finished: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apart, "PROJECT", tmp_path)
    for form, name in (("gguf_q8_0", "gguf"), ("awq", "quantize")):
        assert finished.run("export", f"forms=[{form}]") == 2
        said = capsys.readouterr()
        assert f"run `make env-{name}` first" in said.err
        assert "export: started" not in said.out
    assert finished.run("export", "forms=[merged,merged]") == 2
    assert "export.forms: expected each form once" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(lacks("gguf"), reason="no .venv-gguf; make env-gguf makes it")
def test_gguf_files_answer_token_by_token_as_the_adapter(finished: World) -> None:
    about, folder = exported(finished, "forms=[gguf,gguf_adapter,gguf_q8_0,gguf_q4_k_m]", "max_rows=30")
    for form in ("gguf", "gguf_adapter"):
        found = about["forms"][form]["identity"]
        # Six steps from random weights: some logits are nearly tied, and F16 may turn those alone.
        assert found["equal"] >= 27
        assert all(first["margin"] < 1e-3 for first in found["first"])
        assert tag(finished, form)["identical"] == found["equal"]
    sizes = [about["forms"][form]["size"] for form in ("gguf", "gguf_q8_0", "gguf_q4_k_m")]
    assert sizes == sorted(sizes, reverse=True)
    for form, file in (("gguf", "model-f16"), ("gguf_q8_0", "model-q8_0"), ("gguf_adapter", "base-f16")):
        assert (folder / form / f"{file}.gguf").read_bytes()[:4] == b"GGUF"
        assert (folder / form / "Modelfile").read_text(encoding="utf-8").startswith(f"FROM ./{file}.gguf\n")


@pytest.mark.slow
@pytest.mark.skipif(lacks("gguf"), reason="no .venv-gguf; make env-gguf makes it")
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(small_model: Path, tmp_path: Path) -> None:
    from pipelines.errors import UserError
    from pipelines.exporting import gguf

    for path in small_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}\p{L}?|\s|\S"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UserError, match="no pre-tokenizer"):
        gguf.convert(tmp_path, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    assert UNNAMED not in (0, 1, 2)  # codes that Python itself ends with


@pytest.mark.slow
@pytest.mark.skipif(lacks("quantize"), reason="no .venv-quantize; make env-quantize makes it")
def test_what_llm_compressor_writes_is_judged_and_smaller(finished: World) -> None:
    about, folder = exported(finished, "forms=[merged,fp8,gptq,awq]", "calibration.rows=16")
    for form, bits in (("fp8", "float-quantized"), ("gptq", "pack-quantized"), ("awq", "pack-quantized")):
        stored = json.loads((folder / form / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        assert stored["format"] == bits
        assert "lm_head" in stored["ignore"]
        assert about["forms"][form]["rows"] <= 12
        assert 0 < about["forms"][form]["same"] <= 1
    config = compose([]).config.export.calibration
    assert (config.split, config.rows) == ("train", 256)
