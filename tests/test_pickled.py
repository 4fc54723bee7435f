"""Pickled files are found by name and by content, and everything else is let through."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines import pickled
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.policy.base import load_adapter


def saved_by_torch() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "deep/training_args.PT", "model.pkl", "weights.ckpt", "a.npy"])
def test_a_pickled_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"models:/x/1: {name} is pickled, which runs code when loaded"):
        pickled.check(tmp_path, "models:/x/1")


@pytest.mark.parametrize("content", [b"\x80\x04\x95\x05\x00.", b"\x80\x02}q\x00.", saved_by_torch()])
def test_a_pickle_of_another_name_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.txt is pickled"):
        pickled.check(tmp_path, "folder")


def test_what_is_no_pickle_is_let_through(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "table.xlsx", "w") as archive:
        archive.writestr("sheet.xml", "<a/>")
    # The length of its header, which begins the file, can begin as a pickle does.
    for number in range(120):
        save_file({"w": torch.zeros(1)}, tmp_path / f"{number}.safetensors", metadata={"pad": "x" * (number * 8)})
    assert b"\x80\x02" in {path.read_bytes()[:2] for path in tmp_path.glob("*.safetensors")}
    pickled.check(tmp_path, "folder")
    pickled.check(PROJECT / "data/models/tiny", "the base")


def test_an_adapter_of_pickled_or_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected adapter_model\.safetensors, found none"):
        load_adapter(None, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model\.bin is pickled"):
        load_adapter(None, tmp_path)
