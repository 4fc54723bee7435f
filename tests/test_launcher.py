"""The command line: what it accepts, what it says, how it ends, and that mistakes cost no heavy import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import STAGES, parse, run
from pipelines.config.paths import PROJECT
from pipelines.config.sweep import combinations
from pipelines.errors import UserError
from pipelines.stages import ACTIONS
from pipelines.stages import STAGES as RUNNABLE

HEAVY = ("torch", "transformers", "mlflow", "datasets", "trl", "peft")
INSIDE = """
import json, sys
from pipelines.__main__ import run
code = run(json.loads(sys.argv[1]))
print(json.dumps([code, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""


def launch(*arguments: str) -> tuple[int, str, str, list[str]]:
    """Exit code, stdout, stderr and the heavy modules that were imported on the way."""
    command = [sys.executable, "-c", INSIDE, json.dumps(arguments), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, imported = json.loads(last)
    return code, out, done.stderr, imported


def test_help_names_stages_and_choices() -> None:
    code, out, err, imported = launch("--help")
    assert (code, err, imported) == (0, "", [])
    assert all(f"\n  {stage} " in out for stage in STAGES)
    assert "qwen3_0_6b" in out
    assert "qlora" in out


def test_the_composed_configuration_is_shown() -> None:
    code, out, err, imported = launch("sft", "seed=7", "--cfg", "job")
    assert (code, err, imported) == (0, "", [])
    assert out.startswith("seed: 7\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "sft.trainer.learing_rate=1e-3"], "nearest valid name: learning_rate"),
        (["sft", "sft.trainer.learning_rate=fast"], "sft.trainer.learning_rate: expected a number, got 'fast'"),
        (["finetune", "model=qwen3_06b"], "model: no 'qwen3_06b' in conf/model/; nearest valid name: qwen3_0_6b"),
        (["finetine"], "'finetine': no such stage; nearest valid name: finetune"),
    ],
)
def test_a_mistake_is_one_line_and_imports_nothing_heavy(arguments: list[str], said: str) -> None:
    code, out, err, imported = launch(*arguments)
    assert (code, out, imported) == (2, "", [])
    assert err.startswith("tunesmith: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_module_ends_the_process_with_the_code() -> None:
    command = [sys.executable, "-m", "pipelines", "sft", "sede=1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tunesmith: sede: unknown key; nearest valid name: seed (in the command line)\n"


@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_a_reader_that_has_gone_is_no_error(unbuffered: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONUNBUFFERED": unbuffered} if unbuffered else {}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pipelines", "--help"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


# --- the words ----------------------------------------------------------------------------------


def test_stage_and_overrides() -> None:
    command = parse(["sft", "seed=7", "+sft.trainer.adam_beta1=0.8", "~evaluate.worst"])
    assert command.stage == "sft"
    assert command.overrides == ["seed=7", "+sft.trainer.adam_beta1=0.8", "~evaluate.worst"]
    assert (command.show, command.help, command.multirun) == (False, False, False)


def test_options() -> None:
    assert parse(["sft", "--cfg", "job"]).show
    assert parse(["-h"]).help
    assert parse(["sft", "-m", "seed=1,2"]).multirun
    assert parse(["--multirun", "sft"]).stage == "sft"


def test_overrides_in_one_text_are_split_as_a_shell_would() -> None:
    text = """seed=7 'task.instruction="two words"' model.targets.target_modules=[q_proj,v_proj] """
    assert parse(["sft", "--overrides", text]).overrides == [
        "seed=7",
        'task.instruction="two words"',
        "model.targets.target_modules=[q_proj,v_proj]",
    ]
    assert parse(["sft", "--overrides", ""]).overrides == []
    assert parse(["sft", "--overrides", "a=$(true) b=`true` c=*"]).overrides == ["a=$(true)", "b=`true`", "c=*"]


def test_key_and_value_apart() -> None:
    assert parse(["sft", "--seed", "7", "--model", "tiny"]).overrides == ["seed=7", "model=tiny"]
    assert parse(["sft", "--seed=7"]).overrides == ["seed=7"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "--overrides"], "--overrides: expected a value after it"),
        (["sft", "--seed"], "--seed: expected a value after it"),
        (["sft", "--cfg"], "--cfg: expected a value after it"),
        (["sft", "--cfg", "hydra"], "--cfg: expected job"),
        (["sft", "evaluate"], "'evaluate': expected key=value; the stage is sft already"),
        (["prepar"], "'prepar': no such stage; nearest valid name: prepare"),
        (["sft", "--overrides", "task.name='open"], '--overrides: No closing quotation in "task.name=\'open"'),
    ],
)
def test_a_word_that_is_none_of_its_forms(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(arguments)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("stage", "given", "meant"),
    [
        ("promote", "to=staging", "promote.to=staging"),
        ("promote", "model=models:/x/3", "promote.model=models:/x/3"),
        ("promote", "model=qwen3_8b", "model=qwen3_8b"),
        ("rollback", "model=x", "rollback.model=x"),
        ("serve", "engine=vllm", "serve.engine=vllm"),
        ("deploy", "engine=vllm", "deploy.engine=vllm"),
        ("deploy", "engine=kubernetes", "engine=kubernetes"),
        ("deploy", "engine.image=i", "engine.image=i"),
        ("export", "calibration.rows=16", "export.calibration.rows=16"),
        ("export", "model.id=folder", "model.id=folder"),
        ("sft", "to=staging", "to=staging"),
    ],
)
def test_a_bare_key_of_a_release_stage_is_its_own(stage: str, given: str, meant: str) -> None:
    assert parse([stage, given]).overrides == [meant]


def test_stages_of_the_help_are_those_that_run() -> None:
    assert len(STAGES) == len(RUNNABLE) + len(ACTIONS) + 1
    assert set(STAGES) == {*RUNNABLE, *ACTIONS, "finetune"}


# --- sweeps -------------------------------------------------------------------------------------


def test_a_resolved_file_stands_for_every_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", "seed=7", "--cfg", "job"]) == 0
    place = tmp_path / "config.yaml"
    place.write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["sft", "--resolved", str(place), "--cfg", "job"]) == 0
    assert capsys.readouterr().out == place.read_text(encoding="utf-8")
    for text, words, said in (
        (place.read_text(encoding="utf-8"), ["seed=8"], "--resolved: the file holds every value"),
        ("seed: -1\n", [], "seed"),
        ("- 1\n", [], f"{place}: expected a mapping"),
        ("a: [\n", [], str(place)),
    ):
        place.write_text(text, encoding="utf-8")
        assert run(["sft", "--resolved", str(place), *words]) == 2
        assert said in capsys.readouterr().err


def test_combinations_are_the_product_in_order() -> None:
    assert combinations(["seed=1,2", "sft.loss=completion", "adapter=lora,ia3"]) == [
        ["seed=1", "sft.loss=completion", "adapter=lora"],
        ["seed=1", "sft.loss=completion", "adapter=ia3"],
        ["seed=2", "sft.loss=completion", "adapter=lora"],
        ["seed=2", "sft.loss=completion", "adapter=ia3"],
    ]
    assert combinations(["seed=range(1,4)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]


def test_a_list_is_one_value() -> None:
    assert combinations(["model.targets.target_modules=[q_proj,v_proj],[o_proj]"]) == [
        ["model.targets.target_modules=[q_proj,v_proj]"],
        ["model.targets.target_modules=[o_proj]"],
    ]


@pytest.mark.parametrize("overrides", [[], ["seed=1"], ["model.targets.target_modules=[a,b]"]])
def test_nothing_varies(overrides: list[str]) -> None:
    with pytest.raises(UserError, match="no override varies"):
        combinations(overrides)


def test_a_sweep_that_cant_be_read() -> None:
    with pytest.raises(UserError, match="--multirun"):
        combinations(["seed=[1"])
