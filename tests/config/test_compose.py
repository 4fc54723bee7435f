"""Shipped files compose; what can be wrong with a key or a value is told in a line."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.config.compose import BLOCK_FILES, compose
from pipelines.config.paths import CONF
from pipelines.errors import UserError

PATHS = ["task.sources.train.path=train.csv", "task.sources.heldout.path=heldout.csv"]
REQUIRED = {"my_routing": PATHS, "my_conversations": PATHS, "my_problems": [*PATHS, "task.verify=exact"]}
REQUIRED |= {
    "prompted": ['distill.prompt="Think first."'],
    "distill_generated": ["distillation=sequence"],
}
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


def refusal(*overrides: str, conf: Path = CONF) -> str:
    with pytest.raises(UserError) as caught:
        compose(overrides, conf)
    return str(caught.value)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of `conf/` to write mistakes into."""
    return Path(shutil.copytree(CONF, tmp_path / "conf"))


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


# --- what is shipped ----------------------------------------------------------------------------


def test_every_file_is_a_choice_a_block_or_the_root() -> None:
    known = {f"{group}/{name}" for group, name in CHOICES} | set(BLOCK_FILES) | {"config"}
    assert {path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")} == known
    assert {group for group, _ in CHOICES} == {path.name for path in CONF.iterdir() if path.is_dir()}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes(group: str, name: str) -> None:
    composed = compose([f"{group}={name}", *REQUIRED.get(name, [])])
    if group == "recipe":
        assert composed.config.grpo.recipe == name
    elif group == "distillation":
        assert composed.config.distill.recipe == name
    elif group == "strategy":
        assert composed.config.compute.strategy == name.removesuffix("_offload")
    elif group != "experiment":
        assert getattr(composed.config, group).name == name


def test_the_quick_experiment_changes_what_it_says() -> None:
    config = compose(["experiment=quick"]).config
    assert (config.sft.trainer["max_steps"], config.evaluate.max_rows) == (20, 200)
    assert compose(["experiment=quick", "evaluate.max_rows=5"]).config.evaluate.max_rows == 5


def test_shown_yaml_composes_to_the_same() -> None:
    composed = compose(["seed=7"])
    assert yaml.safe_load(composed.as_yaml()) == composed.config.model_dump()
    assert composed.overrides == ("seed=7",)


# --- overrides ----------------------------------------------------------------------------------


def test_lists_spaces_and_null() -> None:
    given = [
        "model.targets.target_modules=[q_proj,v_proj]",
        'task.instruction="Route it, please: one=two"',
        "sft.trainer.save_total_limit=null",
    ]
    config = compose(given).config
    assert config.adapter.peft["target_modules"] == ["q_proj", "v_proj"]
    assert config.task.instruction == "Route it, please: one=two"
    assert config.sft.trainer["save_total_limit"] is None


@pytest.mark.parametrize("text", ["seed=[1", "=3", "a b=1", "seed=1 2,"])
def test_an_override_that_cant_be_read(text: str) -> None:
    assert refusal(text) == f"override {text!r}: expected key=value (`+key=value` adds, `~key` removes)"


def test_a_setting_of_upstream_is_added_with_a_plus() -> None:
    said = refusal("sft.trainer.adam_beta1=0.8")
    assert "not in the configuration yet; add it with +sft.trainer.adam_beta1=0.8" in said
    assert compose(["+sft.trainer.adam_beta1=0.8"]).config.sft.trainer["adam_beta1"] == 0.8


def test_the_hint_knows_the_adapters_method() -> None:
    own = "adapter.peft.init_ia3_weights=false"
    assert f"add it with +{own}" in refusal("adapter=ia3", own)
    said = refusal("adapter=ia3", "adapter.peft.feedfoward_modules=[down_proj]")
    assert said.startswith("adapter.peft.feedfoward_modules: unknown key; nearest valid name: feedforward_modules ")
    assert "unknown key" in refusal(own)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("sede=1", "seed"),
        ("moddel=tiny", "model"),
        ("sft.trainer.learing_rate=1e-3", "learning_rate"),
        ("+sft.trainer.learing_rate=1e-3", "learning_rate"),
        ("task.sources.banking77_train.limmit=3", "limit"),
        ("gate.rules.accuracy.vlaue=0.5", "value"),
        ("~evaluate.max_row", "max_rows"),
        ("model=tinny", "tiny"),
    ],
)
def test_a_mistyped_override_names_the_right_one(override: str, right: str) -> None:
    said = refusal(override)
    assert len(said.splitlines()) == 1
    assert f"nearest valid name: {right}" in said


def test_a_mistyped_block_names_the_right_one() -> None:
    said = refusal("prepare.duplicate.near=off")
    assert said == (
        "prepare.duplicate.near: prepare.duplicate is unknown; nearest valid name: duplicates (in the command line)"
    )
    assert "prepar is unknown; nearest valid name: prepare" in refusal("prepar.duplicates.near=off")


def test_a_removed_field_is_missing() -> None:
    assert refusal("~evaluate.worst") == "evaluate.worst: missing; a value is required (in the command line)"
    assert "bias" not in compose(["~adapter.peft.bias"]).config.adapter.peft
    said = "evaluate.rows: nothing to remove, it isn't set or is null (in the command line)"
    assert refusal("~evaluate.rows") == said


@pytest.mark.parametrize("given", ["[tiny,qwen3_4b]", "null", "3", "{name: tiny}"])
def test_a_group_takes_one_choice(given: str) -> None:
    assert refusal(f"model={given}").startswith("model: expected one file of conf/model/, got ")


def test_a_group_can_be_left_out_if_it_is_the_experiment() -> None:
    assert refusal("~model") == "model: expected one file of conf/model/, got none"
    assert compose(["~experiment"]).config == compose([]).config


@pytest.mark.parametrize("given", ["seed=1,2", "model=tiny,qwen3_4b", "seed=range(1,3)"])
def test_several_values_need_multirun(given: str) -> None:
    assert refusal(given).startswith(f"{given}: several values need --multirun")


def test_eval_is_short_for_evaluate() -> None:
    given = ["eval.max_rows=5", "+eval.subjects.more={kind: adapter}", "++eval.worst=3", "~eval.subjects.champion"]
    found = compose(given).config.evaluate
    assert (found.max_rows, found.worst, list(found.subjects)) == (5, 3, ["base", "adapter", "parent", "more"])
    # What was typed is what is shown, and only the block's name is short.
    assert compose(["eval.max_rows=5"]).overrides == ("eval.max_rows=5",)
    assert compose(['task.instruction="eval.max_rows=5"']).config.task.instruction == "eval.max_rows=5"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.max_rows=5", "evaluation.max_rows: evaluation is unknown; nearest valid name: evaluate "),
        ("evals.max_rows=5", "evals.max_rows: evals is unknown; nearest valid name: evaluate "),
        ("+evaluat.max_rows=5", "evaluat: unknown key; nearest valid name: evaluate "),
        ("eval=3", "eval: unknown key; nearest valid name: evaluate "),
        ("eval.max_row=5", "evaluate.max_row: unknown key; nearest valid name: max_rows "),
        ("~eval.max_row", "evaluate.max_row: unknown key; nearest valid name: max_rows "),
    ],
)
def test_what_only_looks_like_the_short_form_is_told(override: str, said: str) -> None:
    assert refusal(override) == f"{said}(in the command line)"


# --- where a value was set ----------------------------------------------------------------------


def test_origin_command_line() -> None:
    assert refusal("seed=soon") == "seed: expected a whole number, got 'soon' (in the command line)"


def test_origin_experiment(conf: Path) -> None:
    rewrite(conf / "experiment" / "quick.yaml", "max_rows: 200", "max_rows: 0")
    said = refusal("experiment=quick", conf=conf)
    assert said == "evaluate.max_rows: expected greater than or equal to 1, got 0 (in conf/experiment/quick.yaml)"
    assert compose([], conf).config.evaluate.max_rows is None


def test_origin_group_file(conf: Path) -> None:
    rewrite(conf / "compute" / "gpu_24gb.yaml", "device: cuda", "device: cudda")
    said = refusal("compute=gpu_24gb", conf=conf)
    expected = "compute.device: expected cpu, cuda, got 'cudda'; nearest valid name: cuda"
    assert said == f"{expected} (in conf/compute/gpu_24gb.yaml)"


def test_origin_stage_file_and_root(conf: Path) -> None:
    rewrite(conf / "evaluate.yaml", "worst: 12", "worst: twelve")
    rewrite(conf / "config.yaml", "reuse: true", "reuse: 1")
    assert refusal(conf=conf).splitlines() == [
        "reuse: expected true or false, got 1 (in conf/config.yaml)",
        "evaluate.worst: expected a whole number, got 'twelve' (in conf/evaluate.yaml)",
    ]


def test_a_choice_of_an_experiment_that_isnt_there(conf: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: tinny\n"
    (conf / "experiment" / "other.yaml").write_text(text, encoding="utf-8")
    said = refusal("experiment=other", conf=conf)
    assert said == "model: no 'tinny' in conf/model/; nearest valid name: tiny (in conf/experiment/other.yaml)"


def test_a_profile_chosen_by_an_experiment_is_the_origin(conf: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: broken\n"
    (conf / "experiment" / "other.yaml").write_text(text, encoding="utf-8")
    shutil.copy(conf / "model" / "qwen3_0_6b.yaml", conf / "model" / "broken.yaml")
    rewrite(conf / "model" / "broken.yaml", "context_length: 32768", "context_length: long")
    said = refusal("experiment=other", conf=conf)
    assert said == "model.context_length: expected a whole number, got 'long' (in conf/model/broken.yaml)"


# --- required values and references -------------------------------------------------------------


def test_required_values_are_asked_for() -> None:
    assert refusal("task=my_routing").splitlines() == [
        f"task.sources.{source}.path: required, set it with task.sources.{source}.path=... "
        "(in conf/task/my_routing.yaml)"
        for source in ("train", "heldout")
    ]


def test_a_mistyped_required_key_isnt_asked_for(conf: Path) -> None:
    file = conf / "task" / "my_routing.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("path: ???", "ptah: ???"), encoding="utf-8")
    said = refusal("task=my_routing", conf=conf)
    assert "task.sources.train.ptah: unknown key; nearest valid name: path (in conf/task/my_routing.yaml)" in said


def test_a_reference_to_nothing_names_the_key_that_holds_it(conf: Path) -> None:
    rewrite(conf / "package.yaml", "${task.name}", "${task.nmae}")
    said = refusal(conf=conf)
    assert said == "package.registered_model: Interpolation key 'task.nmae' not found (in conf/package.yaml)"


def test_a_mistyped_key_that_others_refer_to_is_told_itself(conf: Path) -> None:
    rewrite(conf / "model" / "tiny.yaml", "learning_rate:", "laerning_rate:")
    said = refusal(conf=conf)
    assert said == "model.laerning_rate: unknown key; nearest valid name: learning_rate (in conf/model/tiny.yaml)"


def test_a_group_without_a_folder_is_refused_also_with_no_choice(conf: Path) -> None:
    rewrite(conf / "config.yaml", "- experiment: null", "- experimnet: null")
    assert refusal(conf=conf) == (
        "defaults.experimnet: unknown key; nearest valid name: experiment (in conf/config.yaml)"
    )


# --- rules between fields -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.trainer.max_length=1025"], "sft.trainer.max_length: 1025 is over the 1024 tokens of tiny's context"),
        (["sft.trainer.load_best_model_at_end=false"], "sft.early_stopping_patience: needs sft.trainer.load_best"),
        (
            ["compute.attn_implementation=flash_attention_2"],
            "compute.attn_implementation: flash_attention_2 runs",
        ),
        (
            ["task.sources.banking77_train.constant_answer=x"],
            "task.sources.banking77_train: at most one of answer and constant_answer may be set",
        ),
        (["task.sources.other_domains.parts=null"], "task.sources.other_domains: format clinc150 needs parts"),
        (["task.sources.banking77_train.sql=select"], "task.sources.banking77_train: exactly one of path, hub, sql"),
        (["task.sources.banking77_train.url=x"], "task.sources.banking77_train: url belongs to sql, and only to it"),
        (
            ["task.sources.new.limit=3"],
            "task.sources.new: exactly one of path, hub, sql, traces, rows, generate must be set",
        ),
        (
            ["task.sources.banking77_train.records=columns", "task.sources.banking77_train.prompt=null"],
            "task.sources.banking77_train: records: columns needs the name of the prompt's column",
        ),
        (["prepare.contamination.decisive=5"], "prepare.contamination: decisive: 5 is not among ngrams [13, 8]"),
        (["prepare.heldout.method=matched"], "prepare.heldout: method: matched needs shares"),
        (["prepare.heldout.after=2026-01-01"], "prepare.heldout: after belongs to method: time"),
        (["prepare.pass_rate.low=0.95"], "prepare.pass_rate: low: 0.95 is over high, 0.9"),
        (["evaluate.pass_at.samples=2", "evaluate.pass_at.k=[1,4]"], "evaluate.pass_at: k: 4 is over samples, 2"),
        (
            ["evaluate.judge.spending_limit=3", "evaluate.judge.price_in=1.0"],
            "evaluate.judge: spending_limit needs price_in and price_out",
        ),
        (["+sft.trainer.seed=3"], "sft.trainer.seed: decided by seed, not here"),
        (["+adapter.peft.loftq_config={loftq_bits: 4}"], "adapter.peft.loftq_config: decided by adapter.quantization"),
    ],
)
def test_a_rule_between_fields(overrides: list[str], said: str) -> None:
    assert refusal(*overrides).startswith(said)


def test_the_rules_allow_what_they_should() -> None:
    compose(["sft.trainer.max_length=1024", "compute.attn_implementation=eager"])
    compose(["sft.trainer.load_best_model_at_end=false", "sft.early_stopping_patience=null"])
    compose(["compute=gpu_24gb", "compute.attn_implementation=flash_attention_2"])


def test_every_mistake_has_its_line() -> None:
    thinking = "model.chat.thinking={switch: x, value: 3}"
    said = refusal("seed=a", "+sft.epochs=3", "gate.rules.accuracy.value=high", thinking)
    assert [line.partition(":")[0] for line in said.splitlines()] == [
        "sft.epochs",
        "seed",
        "model.chat.thinking.value",
        "gate.rules.accuracy.value",
    ]
    assert "model.chat.thinking.value: expected true or false or text, got 3" in said


# --- sources ------------------------------------------------------------------------------------


def test_a_source_is_what_source_yaml_says_but_for_its_entry() -> None:
    config = compose(["task=gsm8k", "source.license=none", "task.sources.gsm8k_test.limit=5"]).config
    train, test = config.task.sources["gsm8k_train"], config.task.sources["gsm8k_test"]
    assert (train.format, train.split, train.license, train.limit) == ("auto", "train", "MIT", None)
    assert (test.split, test.limit, config.source.license) == ("heldout", 5, "none")


def test_a_mistake_in_source_yaml_is_told_once(conf: Path) -> None:
    rewrite(conf / "source.yaml", "license: unknown", "licence: unknown")
    assert refusal(conf=conf) == "source.licence: unknown key; nearest valid name: license (in conf/source.yaml)"


def test_a_source_can_be_added_on_the_command_line() -> None:
    config = compose(["task.sources.more.path=a.csv", "task.sources.more.prompt=text"]).config
    assert config.task.sources["more"].kind == "path"


# --- subjects -----------------------------------------------------------------------------------


def test_a_subject_is_what_subject_yaml_says_but_for_its_entry() -> None:
    added = 'eval.subjects.api={kind: endpoint, at: "https://localhost/v1", model: m, retries: 1}'
    subjects = compose(
        [f"+{added}", "subject.concurrency=3", "eval.subjects.base.optional=true"]
    ).config.evaluate.subjects
    api = subjects["api"]
    assert (api.kind, api.at, api.model, api.retries, api.concurrency) == (
        "endpoint",
        "https://localhost/v1",
        "m",
        1,
        3,
    )
    assert (subjects["base"].optional, subjects["adapter"].optional) == (True, False)
    assert subjects["champion"].at == "models:/support_routing@champion"


def test_a_subject_can_be_added_field_by_field() -> None:
    given = [
        "kind=endpoint",
        "at=https://localhost/v1",
        "model=m",
        "price_in=0.5",
        "price_out=1.5",
        "spending_limit=2.0",
    ]
    subjects = compose([f"eval.subjects.api.{field}" for field in given]).config.evaluate.subjects
    assert (subjects["api"].spending_limit, subjects["api"].price_out) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "+eval.subjects.x={at: y}",
            "subjects.x: kind must be one of base, adapter, parent, version, model and endpoint",
        ),
        ("+eval.subjects.x={kind: endpoint, at: y}", "subjects.x: kind endpoint needs model, the name that the "),
        ("+eval.subjects.x={kind: endpoint, model: y}", "subjects.x: kind endpoint needs at"),
        ("+eval.subjects.x={kind: version}", "subjects.x: kind version needs at"),
        ("+eval.subjects.x={kind: model}", "subjects.x: kind model needs at"),
        ("eval.subjects.base.at=y", "subjects.base: kind base is known by this configuration; at belongs to the other"),
        (
            "+eval.subjects.x={kind: bse}",
            "subjects.x.kind: expected base, adapter, parent, version, model, endpoint, got 'bse'",
        ),
        ("eval.subjects.base.kid=base", "subjects.base.kid: unknown key; nearest valid name: kind"),
        ("eval.subjects.base.spending_limit=3.0", "subjects.base: spending_limit needs price_in and price_out"),
        ("eval.candidate=adaptor", "candidate: 'adaptor' is none of the subjects base, adapter, parent, champion"),
        ("~eval.subjects.base", "reference: 'base' is none of the subjects adapter, parent, champion"),
    ],
)
def test_what_is_wrong_with_a_subject(override: str, said: str) -> None:
    assert said in refusal(override)


def test_a_mistake_in_subject_yaml_is_told_once(conf: Path) -> None:
    rewrite(conf / "subject.yaml", "retries: 4", "retires: 4")
    assert refusal(conf=conf) == "subject.retires: unknown key; nearest valid name: retries (in conf/subject.yaml)"


def test_a_setting_that_another_refers_to_is_told_where_it_is_set() -> None:
    first, second = refusal("sft.trainer.max_length=0").splitlines()
    assert first.startswith("sft.trainer.max_length: expected greater than or equal to 1, got 0 (in the command line)")
    assert second.startswith("prepare.max_length: expected greater than or equal to 1, got 0")


def test_a_rule_between_blocks_begins_with_the_field_and_names_its_file() -> None:
    assert refusal("flow=[prepare,evaluate]").startswith("flow: expected prepare, ")
    told = refusal("experiment=distill_generated")
    assert told.startswith("flow: without sft before it, distill needs distill.start=base")
    assert told.endswith("(in conf/experiment/distill_generated.yaml)")
