"""The layers, read from the sources: who may import what, and what no file holds."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipelines.config.paths import PROJECT
from pipelines.stages import ACTIONS, STAGES

PACKAGE = PROJECT / "pipelines"
SOURCES = sorted(path.relative_to(PROJECT).as_posix() for path in PACKAGE.rglob("*.py"))
EVERYWHERE = sorted(
    path.relative_to(PROJECT).as_posix()
    for folder in ("pipelines", "benchmarks", "tests")
    for path in (PROJECT / folder).rglob("*.py")
)
HEAVY = {"torch", "transformers", "mlflow", "datasets", "trl", "peft", "accelerate", "bitsandbytes", "scipy"}
LONGEST = 60


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PROJECT / file).read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Dotted names of all that import statements name: `a.b` and, of `from a import b`, both `a` and `a.b`."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def everything(file: str) -> set[str]:
    return imported(ast.walk(tree(file)))


def at_import(file: str) -> set[str]:
    """What importing the file imports; a block for type checkers doesn't run."""
    return imported([node for node in tree(file).body if not isinstance(node, ast.If)])


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def within(folder: str) -> list[str]:
    return [file for file in SOURCES if file.startswith(f"pipelines/{folder}")]


def importers(package: str) -> set[str]:
    return {file for file in SOURCES if package in roots(everything(file))}


def test_stages_never_import_one_another() -> None:
    modules = {f"pipelines.{name}" for name in (*STAGES, *ACTIONS)}
    for name in (*STAGES, *ACTIONS):
        assert not everything(f"pipelines/{name}.py") & (modules - {f"pipelines.{name}"}), name


def test_only_tracking_imports_mlflow() -> None:
    found = importers("mlflow")
    assert found
    assert all(file.startswith("pipelines/tracking/") for file in found), found


def test_only_two_files_know_hydra() -> None:
    assert importers("hydra") == {"pipelines/config/compose.py", "pipelines/config/sweep.py"}


@pytest.mark.parametrize(
    "folder",
    ["dataset/", "tasks/", "environments/", "sandbox/", "verification/", "rewards/", "evaluation/", "release/"],
)
def test_rows_and_scores_need_no_model(folder: str) -> None:
    assert within(folder)
    for file in within(folder):
        assert not roots(everything(file)) & {"torch", "transformers", "mlflow"}, file


@pytest.mark.parametrize(
    "file",
    [
        *(f"pipelines/{name}.py" for name in ("__main__", "errors", "masking", "secret_kinds", "secrets")),
        *within("config/"),
    ],
)
def test_the_launcher_imports_nothing_heavy_before_it_runs(file: str) -> None:
    assert not roots(at_import(file)) & HEAVY
    light = ("pipelines.config", "pipelines.errors", "pipelines.masking", "pipelines.secret")
    ours = {name for name in at_import(file) if name.startswith("pipelines.")}
    assert all(name.startswith(light) for name in ours), ours


@pytest.mark.parametrize("folder", sorted({f"{Path(file).parts[1]}/" for file in SOURCES if len(Path(file).parts) > 2}))
def test_imports_run_downward(folder: str) -> None:
    above = {f"pipelines.{name}" for name in (*STAGES, *ACTIONS, "stages", "finetune", "execute", "__main__")}
    for file in within(folder):
        assert not everything(file) & above, file


def test_no_file_is_a_drawer() -> None:
    for file in EVERYWHERE:
        assert Path(file).stem not in {"utils", "helpers", "common", "manager", "misc"}, file


@pytest.mark.parametrize("file", EVERYWHERE)
def test_no_function_is_long(file: str) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST, f"{file}: {node.name}"


@pytest.mark.parametrize("file", EVERYWHERE)
def test_no_code_of_others_is_run(file: str) -> None:
    assert not roots(everything(file)) & {"pickle", "dill", "cloudpickle", "joblib"}
    for value in trusted(file):
        assert isinstance(value, ast.Constant), f"{file}:{value.lineno}"
        assert value.value is False, f"{file}:{value.lineno}"


# Where code may run that a profile names, and where a trainer's own setting of that name is refused.
TRUSTING = {
    "pipelines/policy/base.py": {"_trusts(model)", "trusts"},
    "pipelines/config/validate.py": {"'model.remote_code'"},
}


def trusted(file: str) -> list[ast.expr]:
    """What is given as `trust_remote_code`, as an argument or in a mapping of arguments, but where a profile may."""
    found = []
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.append(node.value)
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            found += [value for key, value in zip(keys, node.values, strict=True) if key == "trust_remote_code"]
    return [value for value in found if ast.unparse(value) not in TRUSTING.get(file, set())]


def test_code_of_others_is_trusted_in_one_place_where_the_profile_names_it() -> None:
    nodes = list(ast.walk(tree("pipelines/policy/base.py")))
    asked = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "_trusts"]
    assert [ast.unparse(node.body[-1]) for node in asked] == ["return model.remote_code is not None"]
    given = [node for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "trusts"]
    assert [ast.unparse(node.value) for node in given] == ["model is not None and _trusts(model)"]


def test_adapters_are_loaded_in_one_place_that_refuses_pickled_ones() -> None:
    calls = {
        file
        for file in SOURCES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "PeftModel.from_pretrained"
    }
    assert calls == {"pipelines/policy/base.py"}
