"""Set-up: MLflow's store, and .venv under the name where `mlflow run` looks for the project's environment."""

import sys
from pathlib import Path

from mlflow.environment_variables import MLFLOW_ENV_ROOT
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.virtualenv import _get_virtualenv_name

from pipelines.config.paths import PROJECT
from pipelines.tracking.store import EMBEDDED, create_database

RECORD = PROJECT / ".venv" / ".mlflow-env"


def environment_link(root: Path = PROJECT) -> Path:
    """Where `mlflow run` expects the virtual environment of the project in `root`.

    MLflow uses an environment that exists without looking for pyenv. The name is computed by private functions
    of the pinned MLflow; a test runs the plain command to hold this true.
    """
    name = _get_virtualenv_name(_PythonEnv.from_yaml(str(root / "python_env.yaml")), str(root))
    return Path(MLFLOW_ENV_ROOT.get()) / name


def main() -> None:
    """Creates the store and records where the environment's link belongs."""
    create_database(EMBEDDED)
    link = environment_link()
    link.parent.mkdir(parents=True, exist_ok=True)
    if not (PROJECT / ".venv").samefile(sys.prefix):
        sys.exit(f"expected to run in {PROJECT / '.venv'}, not in {sys.prefix}")
    RECORD.write_text(f"{link}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
