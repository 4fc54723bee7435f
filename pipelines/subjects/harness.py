"""Tasks of the lm-evaluation-harness over one of our models: its tasks, prompts and metrics, our engine.

What a task means (documents, few-shot examples, filters, metrics) is lm-eval's own; how likely a continuation is and
what the model writes comes from `policy`. Answers agree with those of lm-eval's Hugging Face backend
(`benchmarks/evaluation_harness.py` measures that).
"""

import importlib
import importlib.util
import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, partialmethod
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Harness
from pipelines.errors import UserError

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
GREEDY = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks"}  # settings that don't matter greedily


@dataclass(frozen=True, slots=True)
class HarnessRow:
    """One metric of one example, as one of the task's filters read the answer.

    `answer` is what the model wrote, or the choice that it finds likeliest; `parsed` is the answer as the filter
    left it, `target` what it should be. `value` is None where the metric is one of the whole set alone, such as a
    perplexity. `logliks` are those of the choices, or of the one text that was scored; None where text was
    generated.
    """

    task: str
    doc_id: int
    metric: str
    filter: str
    value: float | None
    prompt: str
    answer: str
    parsed: str
    target: str
    logliks: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """All rows, and what lm-eval makes of them by itself: `{task or group: {"metric,filter": value}}`."""

    rows: list[HarnessRow]
    aggregated: dict[str, dict[str, float]]
    versions: dict[str, str]
    num_fewshot: dict[str, int]


def run_tasks(settings: Harness, lm: Any, seed: int) -> HarnessResult:
    """Runs the tasks over a model that `harness_model` made, or any other `LM` of lm-eval.

    Nothing is downloaded: a task's data are the files that `settings.data` names, or what the Hub's cache holds.
    Raises UserError where lm-eval is missing, where no task has a name, where a task's data aren't here, and for
    tasks that run code which a model wrote or that need pictures.
    """
    _check_installed()
    import torch
    from lm_eval.evaluator import evaluate

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    lm.seed = seed
    with _silent_and_offline(), TemporaryDirectory(prefix="tunesmith-") as work:
        loaded = _load(settings, Path(work))
        for task in loaded["tasks"].values():
            _settle(task, settings.num_fewshot, seed)
        results = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=settings.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
            confirm_run_unsafe_code=False,
        )
    rows = [row for task, samples in results["samples"].items() for sample in samples for row in _rows(task, sample)]
    return HarnessResult(
        rows,
        {task: _numbers(found) for task, found in results["results"].items()},
        {task: str(version) for task, version in results["versions"].items()},
        dict(results["n-shot"]),
    )


def harness_model(
    model: Any,
    tokenizer: Any,
    template: Mapping[str, Any],
    batch_size: int,
    max_length: int | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Any:
    """One of our models as an `LM` of lm-eval; `template` holds the chat template's switches.

    `max_length` is the most tokens of a sequence, None for what the checkpoint says. `done` is told how many
    requests have been answered. Raises UserError where lm-eval is missing.
    """
    _check_installed()
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import resolve_max_length

    made = type("HarnessModel", (_Engine, TemplateLM), {})()
    made.model, made.tokenizer, made.template = model, tokenizer, dict(template)
    made.eval_batch_size, made.done = batch_size, done
    made.max_length = max_length or resolve_max_length(model.config, tokenizer)
    return made


def _check_installed() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('evaluate.harness.tasks: needs lm-eval; pip install "tunesmith[eval]"')


class _Engine:
    """What lm-eval asks of a model; mixed into its `TemplateLM`."""

    model: Any
    tokenizer: Any
    template: dict[str, Any]
    eval_batch_size: int
    max_length: int
    done: Callable[[int], None]

    seed = 0  # of samples; `run_tasks` sets it
    max_gen_toks = 256  # where a task names no limit, as in lm-eval's own backend

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            return self._encoded([string], self.tokenizer.decode(self.prefix_token_id))[string]
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _encoded(self, strings: Iterable[str], first: str | None) -> dict[str, list[int]]:
        """Tokens by text; the tokenizer puts its first token in front where the text doesn't begin with it."""
        found: dict[str, list[int]] = {}
        wanted = list(dict.fromkeys(strings))
        for bare in (False, True):
            group = [string for string in wanted if (first is not None and string.startswith(first)) == bare]
            special = {"add_special_tokens": False} if bare else {}
            found |= zip(group, self.tokenizer(group, **special)["input_ids"], strict=True) if group else {}
        return found

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._scored(self._pairs([request.args for request in requests]))

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Context and continuation as tokens: those of the whole text, cut where the context's end.

        Spaces at a context's end belong to the continuation; an empty context is the token that begins a text.
        """
        texts = [_space_moved(context, after) for context, after in texts]
        wanted = [text for context, after in texts if context for text in (context, context + after)]
        known = self._encoded(wanted, self.tokenizer.decode(self.prefix_token_id))
        return [
            (known[context], known[context + after][len(known[context]) :]) if context else self._from_nothing(after)
            for context, after in texts
        ]

    def _from_nothing(self, after: str) -> tuple[list[int], list[int]]:
        tokens = self.tok_encode(after, add_special_tokens=False)
        return (tokens[:1], tokens[1:]) if tokens[:1] == [self.prefix_token_id] else ([self.prefix_token_id], tokens)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._scored([(context, after) for _, context, after in requests])

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Scores of continuations after contexts, cut from the left to the model's length; equal contexts meet."""
        from pipelines.policy.likelihood import continuation_likelihoods

        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        scores = [(0.0, True)] * len(pairs)  # what remains of a continuation without tokens
        for place, (context, after) in enumerate(pairs):
            if after:
                room = self.max_length + 1 - len(after)
                if room < 1:
                    raise UserError(
                        f"evaluate.harness.tasks: a continuation of {len(after)} tokens is longer than the "
                        f"{self.max_length} that the model takes"
                    )
                places[tuple(context[-room:])].append(place)
        continuations = [[pairs[place][1] for place in group] for group in places.values()]
        groups = iter(continuation_likelihoods(self.model, list(places), continuations, self.eval_batch_size))
        for group, found in zip(places.values(), groups, strict=True):
            for place, scored in zip(group, found, strict=True):
                scores[place] = scored
        self.done(len(pairs))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[list[tuple[list[int], list[int]]]] = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scores = iter(self._scored([pair for each in windows for pair in each]))
        return [sum(next(scores)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(place)
        texts = [""] * len(requests)
        for places in groups.values():
            first = requests[places[0]]
            written = self._written([requests[i].args[0] for i in places], first.args[1], str(first.task_name))
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return texts

    def _written(self, contexts: Sequence[str], given: Mapping[str, Any], task: str) -> list[str]:
        from lm_eval.models.utils import normalize_gen_kwargs

        from pipelines.policy.chat import Decoding, generate

        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        limit = settings["max_gen_toks"]
        room = self.max_length - limit
        if room < 1:
            raise UserError(
                f"evaluate.harness.tasks: {task} asks for {limit} new tokens; the model takes {self.max_length} in all"
            )
        known = self._encoded(contexts, self.tokenizer.bos_token)
        stop = (*settings["until"], self.tokenizer.decode(self.eot_token_id))
        decoding = Decoding(limit, _temperature(settings, task), self.seed, stop)
        prompts = [known[context][-room:] for context in contexts]
        found = generate(self.model, self.tokenizer, prompts, decoding, self.eval_batch_size, self.done)
        return [answer.text for answer in found]

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        def rendered(history: Sequence[Mapping[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    list(history),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self.template,
                )
            )

        try:
            return rendered(chat_history)
        except TemplateError:  # as in lm-eval: the template takes no system message
            return rendered([message for message in chat_history if message["role"] != "system"])


def _space_moved(context: str, after: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + after


def _temperature(settings: Mapping[str, Any], task: str) -> float | None:
    """None for greedy answers. Raises UserError for settings that would change the answers and aren't taken."""
    other = {name: value for name, value in settings.items() if name not in GREEDY and value is not None}
    if not settings["do_sample"]:
        temperature = None
    else:
        temperature = float(settings.get("temperature") or 1.0)
        neutral: dict[str, tuple[Any, ...]] = {"top_p": (None, 1, 1.0), "top_k": (None, 0)}
        other |= {name: settings[name] for name, same in neutral.items() if settings.get(name) not in same}
    if other:
        name, value = next(iter(other.items()))
        raise UserError(
            f"evaluate.harness.tasks: {task} generates with {name}={value!r}; expected greedy answers, or samples "
            "of a temperature alone"
        )
    return temperature


@cache
def _defaults() -> dict[str, Any]:
    """lm-eval's own tasks, groups and tags; to read them takes seconds."""
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _load(settings: Harness, work: Path) -> Any:
    """The tasks as lm-eval loads them, with our files in the place of Hub datasets."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=_include_path(settings), include_defaults=False)
    index = manager.task_index
    if any(name not in index or index[name].kind.name == "GROUP" for name in settings.tasks):
        index.update({**_defaults(), **index})
    for name in settings.tasks:
        if name not in index:
            guess = did_you_mean(name, index)
            raise UserError(f"evaluate.harness.tasks: lm-eval has no task or group {name!r}{guess}")
    leaves = sorted({leaf for name in settings.tasks for leaf in _leaves(index, name)})
    for leaf in leaves:
        _check_safe(leaf, (index[leaf].cfg or {}).get("unsafe_code"))
        if leaf in settings.data:
            index[leaf] = replace(index[leaf], yaml_path=_over_files(leaf, index[leaf], settings.data[leaf], work))
    return _loaded(manager, settings.tasks)


def _include_path(settings: Harness) -> str | None:
    if settings.include_path is None:
        return None
    folder = resolve(settings.include_path)
    if not folder.is_dir():
        raise UserError(f"evaluate.harness.include_path: {folder} is no folder")
    return str(folder)


def _leaves(index: Mapping[str, Any], name: str) -> Iterator[str]:
    """The registered tasks that a name stands for: itself, or those of a group or tag."""
    entry = index.get(name)
    if entry is None:  # a group's own task, written in place
        return
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    if entry.kind.name not in ("GROUP", "TAG"):
        yield name
        return
    for member in members or []:
        inner = member if isinstance(member, str) else member.get("task", member.get("group"))
        if isinstance(inner, str):
            yield from _leaves(index, inner)


def _check_safe(task: str, unsafe: object) -> None:
    if unsafe:
        raise UserError(f"evaluate.harness.tasks: {task} runs code that the model writes, which isn't allowed here")


def _over_files(task: str, entry: Any, files: Mapping[str, str], work: Path) -> Path:
    """A YAML file that includes the task's own and reads local files instead."""
    paths = {split: resolve(path) for split, path in files.items()}
    for split, path in paths.items():
        if not path.is_file() or path.suffix not in BUILDERS:
            raise UserError(
                f"evaluate.harness.data.{task}.{split}: expected a file ({', '.join(BUILDERS)}), got {path}"
            )
    for split in filter(None, map((entry.cfg or {}).get, SPLITS)):
        if split not in paths:
            raise UserError(f"evaluate.harness.data.{task}: the task reads the split {split!r}, which has no file")
    kinds = sorted({BUILDERS[path.suffix] for path in paths.values()})
    if len(kinds) > 1:
        raise UserError(f"evaluate.harness.data.{task}: expected files of one kind, got {' and '.join(kinds)}")
    written = {
        "include": str(entry.yaml_path),
        "task": task,
        "dataset_path": kinds[0],
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path) for split, path in paths.items()},
            "cache_dir": str(work / "cache"),
        },
    }
    over = work / f"{len(list(work.iterdir()))}.yaml"
    over.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    return over


def _loaded(manager: Any, names: Sequence[str]) -> Any:
    found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for kind, each in _loaded_one(manager, name).items():
            found[kind] |= each
    for name, task in found["tasks"].items():
        _check_safe(name, getattr(task, "UNSAFE_CODE", False))
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"evaluate.harness.tasks: {name} shows pictures or sounds; expected a task of text alone")
    return found


def _loaded_one(manager: Any, name: str) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError

    try:
        return dict(manager.load([name]))
    except ImportError as error:
        raise UserError(f"evaluate.harness.tasks: {name} needs a package that isn't installed: {error}") from error
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"evaluate.harness.tasks: {name} can't be loaded: {_first_line(error)}. Nothing is downloaded: its data "
            f"have to be in the Hub's cache or in files that evaluate.harness.data names"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _settle(task: Any, num_fewshot: int | None, seed: int) -> None:
    """The number of examples, and what they are drawn with; a task that says 0 is never given any."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


@contextmanager
def _silent_and_offline() -> Iterator[None]:
    import datasets
    import huggingface_hub

    tqdm = importlib.import_module("tqdm")
    levels = {name: logging.getLogger(name).level for name in ("lm_eval", "transformers")}
    bars, drawn = datasets.are_progress_bars_disabled(), tqdm.tqdm.__init__
    offline = [(module, module.HF_HUB_OFFLINE) for module in (huggingface_hub.constants, datasets.config)]
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        tqdm.tqdm.__init__ = partialmethod(drawn, disable=True)
        for module, _ in offline:
            module.HF_HUB_OFFLINE = True
        with redirect_stdout(StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        tqdm.tqdm.__init__ = drawn
        if not bars:
            datasets.enable_progress_bars()
        for module, before in offline:
            module.HF_HUB_OFFLINE = before


def _rows(task: str, sample: Mapping[str, Any]) -> Iterator[HarnessRow]:
    arguments = sample["arguments"]
    first = sample["resps"][0][0]
    logliks: tuple[float, ...] | None = None
    parsed = sample["filtered_resps"][0]
    if isinstance(first, str):
        prompt, answer = arguments[0][0], first
    elif len(arguments[0]) == 1:  # a whole text, scored
        prompt, answer, parsed, logliks = "", arguments[0][0], "", (float(first),)
    else:
        prompt, answer = arguments[0][0], _likeliest(sample)
        parsed, logliks = answer, tuple(float(each[0][0]) for each in sample["resps"])
    for metric in sample["metrics"]:
        yield HarnessRow(
            task=task,
            doc_id=int(sample["doc_id"]),
            metric=metric,
            filter=sample["filter"],
            value=_number(sample[metric]),
            prompt=prompt,
            answer=answer,
            parsed=_text(parsed),
            target=_target(sample),
            logliks=logliks,
        )


def _choices(sample: Mapping[str, Any]) -> list[str]:
    """What tells the choices apart: what is scored, or, where that is the same, what it is scored after."""
    pairs = [tuple(pair) for pair in sample["arguments"]]
    if pairs[-1][0] == "" != pairs[0][0]:  # the same choices once more, after nothing
        pairs = pairs[: len(pairs) // 2]
    side = 1 if len({after for _, after in pairs}) > 1 or len(pairs) == 1 else 0
    return [pair[side] for pair in pairs]


def _likeliest(sample: Mapping[str, Any]) -> str:
    choices = _choices(sample)
    return choices[int(np.argmax([each[0][0] for each in sample["resps"][: len(choices)]]))]


def _target(sample: Mapping[str, Any]) -> str:
    target = sample["target"]
    if isinstance(target, int) and not isinstance(target, bool) and len(sample["arguments"]) > 1:
        choices = _choices(sample)
        return choices[target] if target < len(choices) else str(target)
    return _text(target)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) else None


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task's results, which also hold its name and counts."""
    return {
        name: float(value)
        for name, value in found.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    }
