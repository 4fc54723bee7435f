"""The launcher: compose, validate, track, call.

Nothing heavy is imported before the configuration is valid, so help, `--cfg job` and every mistake in a key or
a value answer in about a second.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.config.compose import Composed, compose, load_resolved
from pipelines.config.nearest import did_you_mean
from pipelines.config.short import spelled_out
from pipelines.errors import Stopped, UserError
from pipelines.masking import install as mask_output
from pipelines.secrets import masked

STAGES = {
    "prepare": "sources -> rows: train, validation, heldout, with a manifest",
    "sft": "rows -> adapter, by supervised fine-tuning",
    "generate": "rows + teacher -> rows: what the teacher answers, kept where it is right",
    "distill": "rows + teacher (+ adapter) -> the student's adapter",
    "grpo": "rows + adapter -> adapter, by reinforcement learning with the task's verifier as reward",
    "evaluate": "rows + subjects -> scores of base, adapter, version or endpoint on the held-out rows",
    "package": "adapter + scores -> registered model version",
    "promote": "version + gate -> alias moved, or a refusal on record (exit code 3)",
    "rollback": "alias -> the version that held it before",
    "serve": "version -> an address that answers: MLflow's scoring server, OpenAI-compatible, or vLLM",
    "deploy": "version -> Dockerfile, Kubernetes manifests and commands that serve it",
    "export": "version -> merged weights, GGUF, INT8, INT4 or FP8, judged again",
    "reproduce": "version -> made again from what it says of itself, and compared",
    "lineage": "version -> the chain from source rows to alias, as a tree and a picture",
    "plan": "configuration -> what fits which GPU, how fast and at what cost; nothing is loaded",
    "compare": "past evaluations of one held-out set -> leaderboard",
    "job": "configuration -> the file by which Kubernetes, Kubeflow or SkyPilot runs a stage on its machines",
    "finetune": "the flow: prepare, sft (distill, grpo), evaluate, package, promote; one run with a child run for each",
}

USAGE = """usage: python -m pipelines STAGE [key=value ...]     (also: tunesmith STAGE ...)

stages
{stages}

overrides
  group=name         choose a file of conf/<group>/:
{groups}
  key=value          set a value:   sft.trainer.learning_rate=1e-3
  +key=value         add a setting: +sft.trainer.neftune_noise_alpha=5
  ~key               remove one
  'key="two words"'  a value with spaces;  key=[a,b]  a list;  key=null  none

options
  --cfg job          print the composed configuration and stop
  -m, --multirun     key=a,b runs every combination, under one parent run; hydra/launcher=joblib or submitit_slurm
                     runs them side by side, hydra/sweeper=optuna chooses them
  --resolved FILE    a configuration that was composed before, such as a run's config.yaml, in place of overrides
  --overrides TEXT   overrides in one text, split as a shell would (what MLproject passes)
  --key value        the same as key=value
  -h, --help         this text

exit codes: 0 done, 2 a mistake in configuration or data, 3 refused by a gate, 4 a service doesn't answer,
130 and 143 stopped by Ctrl-C and SIGTERM, 1 an error of ours"""


@dataclass
class Command:
    """What the command line asks for."""

    stage: str = ""
    overrides: list[str] = field(default_factory=list)
    resolved: str | None = None
    show: bool = False
    help: bool = False
    multirun: bool = False


def main() -> None:
    """The console script; ends the process with the exit code."""
    mask_output()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carries out a command line; returns its exit code."""
    try:
        code = _run(parse(arguments))
        sys.stdout.flush()  # a reader that has gone shows here, not at the interpreter's end
        return code
    except UserError as error:
        print(f"tunesmith: {masked(str(error))}", file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        print(f"tunesmith: {stop}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(command: Command) -> int:
    if command.help or not command.stage:
        print(help_text())
        return 0 if command.help else 2
    if command.multirun:
        from pipelines.config.sweep import combinations, uses_plugins

        if uses_plugins(command.overrides):
            return _sweep_by_plugins(command)
        jobs = [compose(overrides) for overrides in combinations(command.overrides)]
    else:
        jobs = [compose(command.overrides) if command.resolved is None else _resolved(command)]
    if command.show:
        print(jobs[0].as_yaml(), end="")
        return 0
    return _execute(command, jobs)


def _resolved(command: Command) -> Composed:
    if command.overrides:
        raise UserError(f"--resolved: the file holds every value; expected no override, got {command.overrides[0]}")
    return load_resolved(str(command.resolved))


def _sweep_by_plugins(command: Command) -> int:
    quieten()
    from pipelines import stopping
    from pipelines.sweeping import sweep

    stopping.install()
    sweep(command.stage, command.overrides)
    return 0


def _execute(command: Command, jobs: Sequence[Composed]) -> int:
    quieten()
    from pipelines import stopping
    from pipelines.execute import execute, sweep

    stopping.install()
    if command.multirun:
        sweep(command.stage, jobs)
    else:
        execute(command.stage, jobs[0].config)
    return 0


def parse(arguments: Sequence[str]) -> Command:
    """The command line as a Command. Raises UserError for a word that is none of its forms."""
    command, words = Command(), list(arguments)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            command.help = True
        elif word in ("-m", "--multirun"):
            command.multirun = True
        elif word == "--cfg":
            _expect_job(words)
            command.show = True
        elif word == "--resolved":
            command.resolved = _value(word, words)
        elif word == "--overrides":
            command.overrides += _split(_value(word, words))
        elif word.startswith("--") and "=" in word:
            command.overrides.append(word[2:])
        elif word.startswith("--"):
            command.overrides.append(f"{word[2:]}={_value(word, words)}")
        elif "=" in word or word.startswith("~"):
            command.overrides.append(word)
        else:
            _set_stage(command, word)
    command.overrides = [spelled_out(command.stage, text) for text in command.overrides]
    return command


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--overrides: {error} in {text!r}") from None


def _value(word: str, words: list[str]) -> str:
    if not words:
        raise UserError(f"{word}: expected a value after it")
    return words.pop(0)


def _expect_job(words: list[str]) -> None:
    if _value("--cfg", words) != "job":
        raise UserError("--cfg: expected job")


def _set_stage(command: Command, word: str) -> None:
    if command.stage:
        raise UserError(f"{word!r}: expected key=value; the stage is {command.stage} already")
    if word not in STAGES:
        raise UserError(f"{word!r}: no such stage{did_you_mean(word, STAGES)}")
    command.stage = word


def help_text() -> str:
    """Usage with the stages and what conf/ offers."""
    from pipelines.config.paths import CONF

    stages = "\n".join(f"  {name:<11}{what}" for name, what in STAGES.items())
    groups = sorted(path for path in CONF.iterdir() if path.is_dir())
    lines = [f"    {g.name:<11}{', '.join(sorted(p.stem for p in g.glob('*.yaml')))}" for g in groups]
    return USAGE.format(stages=stages, groups="\n".join(lines))


def quieten() -> None:
    """Third parties keep silent: their progress bars, telemetry and start-up warnings are not ours to show."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "BITSANDBYTES_NOWELCOME": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    }
    warnings.filterwarnings("ignore")
    import logging

    for name in ("mlflow", "alembic", "bitsandbytes", "transformers", "trl", "peft", "datasets", "accelerate", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its level is set when it is imported, which others do as soon as it is installed.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # a failing query is told by its own error


if __name__ == "__main__":
    main()
