"""Products are whole or absent, and say so when a file was touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError

MADE_BY = {"run_id": "r", "stage": "prepare", "fingerprint": "f"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published product of two files."""
    final = tmp_path / "rows" / "task-1"
    work = products.partial(final)
    (work / "train.jsonl").write_text("one\n")
    (work / "deep").mkdir()
    (work / "deep" / "heldout.jsonl").write_text("two\n")
    products.publish(work, final, "rows", MADE_BY, {"num_rows": 2})
    return final


def test_published_folder_replaces_the_partial_one(folder: Path) -> None:
    found = products.load(folder)
    assert (found.kind, found.run_id, found.about) == ("rows", "r", {"num_rows": 2})
    assert sorted(json.loads((folder / "manifest.json").read_text())["files"]) == ["deep/heldout.jsonl", "train.jsonl"]
    assert [path.name for path in folder.parent.iterdir()] == ["task-1"]


def test_digest_depends_on_names_and_bytes_only(folder: Path, tmp_path: Path) -> None:
    for name, text in (("same", "one\n"), ("other", "One\n")):
        work = products.partial(tmp_path / name)
        (work / "train.jsonl").write_text(text)
        (work / "deep").mkdir()
        (work / "deep" / "heldout.jsonl").write_text("two\n")
        products.publish(work, tmp_path / name, "rows", {**MADE_BY, "run_id": name}, {})
    assert products.load(tmp_path / "same").digest == products.load(folder).digest
    assert products.load(tmp_path / "other").digest != products.load(folder).digest


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "digest"])
def test_damage_is_named(folder: Path, damage: str) -> None:
    file, manifest = folder / "train.jsonl", folder / "manifest.json"
    if damage == "flip":
        file.write_text("onf\n")
    elif damage == "cut":
        file.write_text("")
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(manifest.read_text().replace(products.load(folder).digest, "0" * 64))
    with pytest.raises(UserError, match=r"train\.jsonl|manifest\.json"):
        products.load(folder)


def test_a_product_without_files_is_an_error_of_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="left no file"):
        products.publish(products.partial(tmp_path / "empty"), tmp_path / "empty", "version", MADE_BY, {})


def test_folder_without_a_manifest_is_no_product(tmp_path: Path) -> None:
    work = products.partial(tmp_path / "rows")
    (work / "train.jsonl").write_text("half")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        products.load(work)


def test_a_file_in_the_way_of_the_output_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a file, not a folder")
    with pytest.raises(UserError, match="can't write the output folder"):
        products.partial(tmp_path / "rows" / "task-1")


PREPARE_ON_A_FULL_DISK = """
set -e
mkdir -p {mount}
mount -t tmpfs -o size=64k tmpfs {mount}
{python} -m pipelines prepare {overrides} paths.rows={mount}/rows
"""


def _in_a_namespace(script: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk in a namespace")
def test_a_full_disk_is_said_plainly_and_leaves_nothing_whole(tmp_path: Path, store: str) -> None:
    if _in_a_namespace(f"mount -t tmpfs tmpfs {tmp_path}").returncode != 0:
        pytest.skip("user namespaces may not mount here")
    overrides = f"tracking.uri={store} paths.outputs={tmp_path}"
    script = PREPARE_ON_A_FULL_DISK.format(mount=tmp_path / "disk", python=sys.executable, overrides=overrides)
    done = _in_a_namespace(script + "\n")
    listing = _in_a_namespace(script.replace("set -e", "") + f"\nfind {tmp_path}/disk -name manifest.json")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "manifest.json" not in listing.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        products.partial(tmp_path / "rows")
