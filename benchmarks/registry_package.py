"""What a registered version weighs, how long packaging takes, and whether it answers the same where nothing of us is.

The shipped default is trained for a few steps, judged on all of its held-out rows and packaged; the version is then
loaded in a virtual environment made from its own requirements. That installs torch anew: some minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config.paths import PROJECT

MODEL = "support_routing"
STEPS = 5
REFUSED = 3  # so few steps pass no gate, which is asked when the version is there
OVERRIDES = (
    f"sft.trainer.max_steps={STEPS}",
    "sft.trainer.eval_strategy=no",
    "sft.trainer.save_strategy=no",
    "sft.trainer.load_best_model_at_end=false",
    "sft.early_stopping_patience=null",
    "evaluate.calibration.confidence=none",
    "evaluate.robustness.rows=null",
    "evaluate.red_team.wraps=null",
    "evaluate.cost.rows=null",
    "evaluate.resamples=1000",
    "tracking.system_metrics=false",
)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
# Run by the fresh environment's own Python, outside of the checkout.
ASK = """
import json, sys
from pathlib import Path
import mlflow
folder = Path(mlflow.artifacts.download_artifacts(sys.argv[1]))
answers = json.loads((folder / "artifacts/release/answers.json").read_text())
model = mlflow.pyfunc.load_model(sys.argv[1])
import pipelines
from pipelines.policy.chat import Decoding, tokens_of
from pipelines.policy.template import ends_of, render
inner, found = model.unwrap_python_model(), []
for row in answers:
    asked = {"messages": row["messages"]} | ({"tools": row["tools"]} if row["tools"] else {})
    reply = model.predict(asked)
    prompt = render(inner.tokenizer, [row["messages"]], [row["tools"]], inner.template, prompt=True)
    settings = Decoding(inner.max_new_tokens).settings() | {
        "max_new_tokens": inner.max_new_tokens,
        "pad_token_id": inner.tokenizer.pad_token_id,
        "eos_token_id": ends_of(inner.model.generation_config, inner.tokenizer),
    }
    (tokens,) = tokens_of(inner.model, inner.tokenizer, prompt, settings)
    found.append(tokens == row["tokens"] and reply["choices"][0]["message"]["content"] == row["answer"])
print(json.dumps({"same": sum(found), "rows": len(answers), "code": pipelines.__file__}))
"""


def measure(temporary: Path) -> dict[str, Any]:
    """Whether a fresh environment answers token for token the same, the version's size, and the seconds of packaging.

    `size_ratio` is the bytes of all its files over those of adapter and tokenizer; `package_s` is the run of the stage,
    the copy into the local store included.
    """
    store = f"sqlite:///{temporary}/mlflow.db"
    seconds = package(temporary, store)
    folder = version_folder(store)
    size, needed = sizes(folder)
    told = fresh(temporary, folder / "requirements.txt", f"models:/{MODEL}/1", store)
    return {
        "fresh_env_identical": told["same"] == told["rows"] > 0,
        "size_ratio": round(size / needed, 3),
        "package_s": round(seconds, 1),
        "fresh_env_rows": told["rows"],
        "version_bytes": size,
        "adapter_and_tokenizer_bytes": needed,
    }


def package(temporary: Path, store: str) -> float:
    """Runs the flow to the registered version, everything it writes below `temporary`; the seconds of `package`."""
    places = [f"paths.{name}={temporary / name}" for name in ("rows", "adapters", "outputs")]
    command = [sys.executable, "-m", "pipelines", "finetune", f"tracking.uri={store}", *places, *OVERRIDES]
    _run(command, PROJECT, {}, allowed=(0, REFUSED))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.stage = 'package'")
    return float(run.info.end_time - run.info.start_time) / 1000


def version_folder(store: str) -> Path:
    """The files of the first version, where the local store keeps them."""
    import mlflow

    mlflow.set_tracking_uri(store)
    return Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the whole version, and of its adapter and tokenizer."""
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return whole, sum((folder / "artifacts" / "adapter" / name).stat().st_size for name in (*TOKENIZER, *ADAPTER))


def fresh(temporary: Path, requirements: Path, uri: str, store: str) -> dict[str, Any]:
    """What a virtual environment with these requirements alone says to the recorded answers."""
    environment = temporary / "environment"
    print("  making a virtual environment from the version's requirements", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", str(environment)], temporary, {})
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    _run(install, temporary, {})
    settings = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "HF_HUB_OFFLINE": "1"}
    output = _run([python, "-I", "-c", ASK, uri], temporary, settings)
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    if Path(told["code"]).is_relative_to(PROJECT) and not temporary.is_relative_to(PROJECT):
        raise RuntimeError(f"the fresh environment ran {told['code']}, not the version's own code")
    return told


def _run(command: list[str], folder: Path, environment: dict[str, str], allowed: Sequence[int] = (0,)) -> str:
    """The command's output. Raises RuntimeError with the end of what it wrote."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode not in allowed:
        raise RuntimeError(f"{' '.join(command)[:200]}: exit {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
