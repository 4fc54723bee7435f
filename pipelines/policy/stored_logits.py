"""A teacher's likeliest tokens at each place of its rows' completions: written once, learnt from in every epoch.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, with the rest of the vocabulary as one
more outcome, so that what is compared stays a distribution.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from trl import SFTConfig, SFTTrainer

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy import mask
from pipelines.policy.geometry import BLANK, SameSteps, with_blanks
from pipelines.policy.imitation import Examples, encode_answers
from pipelines.policy.learner import begin, check_reads_weights, peft_of
from pipelines.policy.row_names import ByTokens
from pipelines.policy.vocabulary import digest
from pipelines.product import digest_of

FOLDER = "top_k"  # in the folder of generated rows
MANIFEST = "stored.json"
ROWS_PER_SHARD = 1024
WORTH = 100  # of the full distributions' bytes at most one part is stored
FULL_BYTES = 4  # of a float32
LOGITS_AT_ONCE = 2**26  # of a batch of the teacher's
NOTHING = -65504.0  # float16's lowest: no mass at all
IDS = ((2**8, torch.uint8), (2**16, torch.uint16), (2**32, torch.uint32))

Done = Callable[[int], None]


class Teacher(Protocol):
    """A loaded teacher: its model, its tokenizer and its template's switches."""

    @property
    def model(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def template(self) -> Mapping[str, Any]: ...


# --- writing ------------------------------------------------------------------------------------


def store(
    teacher: Teacher, rows: Sequence[Row], top_k: int, batch_size: int, folder: Path, done: Done
) -> dict[str, Any]:
    """Writes the teacher's `top_k` likeliest tokens at every trained token of the rows' completions into `folder`.

    What is written of a place: token ids in the smallest unsigned type that holds the vocabulary, their
    log-probabilities and that of all others together in float16, at temperature 1. `done` is told of rows that are
    finished; a shard that an earlier attempt finished is kept. Returns what `stored.json` says. Raises UserError
    where it would be more than a hundredth of the full distributions.
    """
    size = teacher.model.get_output_embeddings().weight.shape[0]
    check_worth(top_k, size)
    examples = encode_answers(teacher.tokenizer, rows, teacher.template)
    about = {
        "top_k": top_k,
        "vocabulary": size,
        "tokens": sum(label != mask.IGNORED for example in examples for label in example.labels),
        "rows": len(rows),
        "rows_digest": rows_digest(rows),
        "tokenizer": digest(teacher.tokenizer),
        "encoded": encoded_digest(examples),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(examples), ROWS_PER_SHARD):
        part, place = examples[start : start + ROWS_PER_SHARD], folder / _shard(start)
        of = digest_of({"encoded": encoded_digest(part), "top_k": top_k})
        if not _is_of(place, of):
            partial = place.with_suffix(".partial")
            save_file(_likeliest(teacher.model, part, top_k, batch_size, done), partial, {"of": of})
            partial.replace(place)
        else:
            done(len(part))
    about["bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    about["share"] = about["bytes"] / max(1, about["tokens"] * size * FULL_BYTES)
    (folder / MANIFEST).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return about


def check_worth(top_k: int, vocabulary: int) -> None:
    """Raises UserError where so many tokens are no longer few."""
    stored = top_k * (_ids_of(vocabulary).itemsize + 2) + 2
    if stored * WORTH > vocabulary * FULL_BYTES:
        most = (vocabulary * FULL_BYTES // WORTH - 2) // (_ids_of(vocabulary).itemsize + 2)
        raise UserError(
            f"generate.top_k: {top_k} tokens a place take more than 1/{WORTH} of the full distributions over "
            f"{vocabulary}; set at most {most}"
        )


def rows_digest(rows: Sequence[Row]) -> str:
    """sha256 of what the rows ask and answer, in hex."""
    return digest_of([[row.id, row.prompt, row.completion, row.tools] for row in rows])


def encoded_digest(examples: Examples) -> str:
    """sha256 of the rows' tokens and of which are trained, in hex."""
    return digest_of([[example.input_ids, example.labels] for example in examples])


def _shard(start: int) -> str:
    return f"{start // ROWS_PER_SHARD:05d}.safetensors"


def _is_of(place: Path, of: str) -> bool:
    if not place.exists():
        return False
    with safe_open(place, framework="pt") as shard:
        return (shard.metadata() or {}).get("of") == of


def _ids_of(vocabulary: int) -> torch.dtype:
    return next(kind for most, kind in IDS if vocabulary <= most)


def _places(example: mask.Example) -> list[int]:
    """Where the distributions lie that say the trained tokens: one before each; a first token is said by none."""
    return [at - 1 for at, label in enumerate(example.labels) if at and label != mask.IGNORED]


def _likeliest(model: Any, examples: Examples, top_k: int, batch_size: int, done: Done) -> dict[str, torch.Tensor]:
    """Of each trained token, row by row: `ids` and `logp` (tokens, top_k), likeliest first, and `rest` (tokens,)."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(examples)
    kind = _ids_of(model.get_output_embeddings().weight.shape[0])
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].input_ids))
    at = 0
    while at < len(order):
        numbers = order[at : at + _fitting(model, [examples[n] for n in order[at : at + batch_size]])]
        for number, logp in zip(numbers, _log_probabilities(model, [examples[n] for n in numbers]), strict=True):
            best = logp.topk(top_k, dim=-1)
            rest = logp.scatter(-1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
            values = torch.cat([best.values, rest], dim=-1).clamp(min=NOTHING)
            found[number] = best.indices.to(kind).cpu(), values.half().cpu()
        done(len(numbers))
        at += len(numbers)
    values = torch.cat([values for _, values in found])
    return {
        # uint16 and uint32 can't be concatenated everywhere.
        "ids": torch.cat([ids.to(torch.int64) for ids, _ in found]).to(kind),
        "logp": values[:, :-1].contiguous(),
        "rest": values[:, -1].contiguous(),
    }


def _fitting(model: Any, examples: Examples) -> int:
    """How many of the examples, the shortest first, fit into a batch."""
    size = model.get_output_embeddings().weight.shape[0]
    for count in range(len(examples), 1, -1):
        if count * _kept(examples[:count]) * size <= LOGITS_AT_ONCE:
            return count
    return 1


def _kept(examples: Examples) -> int:
    """Places from the end that hold every trained token's distribution, in the longest example's count."""
    length = max(len(example.input_ids) for example in examples)
    return length - min((_places(example) or [length - 1])[0] for example in examples)


@torch.inference_mode()
def _log_probabilities(model: Any, examples: Examples) -> list[torch.Tensor]:
    """float32 of (trained tokens, vocabulary) for each example."""
    length, kept = max(len(example.input_ids) for example in examples), _kept(examples)
    padded = [example.input_ids + [0] * (length - len(example.input_ids)) for example in examples]
    seen = [[1] * len(example.input_ids) + [0] * (length - len(example.input_ids)) for example in examples]
    logits = model(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        logits_to_keep=kept,
        use_cache=False,
    ).logits
    begin = length - kept
    return [
        logits[number, [place - begin for place in _places(example)]].float().log_softmax(-1)
        for number, example in enumerate(examples)
    ]


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """What was stored, as it lies on the disk: `ids` and `logp` of (tokens, top_k), `rest` of (tokens,).

    `begins` holds each row's first place, and one more for the end.
    """

    ids: torch.Tensor
    logp: torch.Tensor
    rest: torch.Tensor
    begins: Sequence[int]

    def of(self, number: int) -> dict[str, torch.Tensor]:
        """A row's places: int64 ids, float32 log-probabilities of (tokens, top_k + 1), the rest's last."""
        at = slice(self.begins[number], self.begins[number + 1])
        logp = torch.cat([self.logp[at], self.rest[at, None]], dim=1).float()
        return {"ids": self.ids[at].to(torch.int64), "logp": logp}

    def nothing(self) -> dict[str, torch.Tensor]:
        """No place at all."""
        empty = self.logp[:0].float()
        return {"ids": self.ids[:0].to(torch.int64), "logp": torch.cat([empty, empty[:, :1]], dim=1)}


def opened(folder: Path, rows: Sequence[Row], examples: Examples, tokenizer: Any) -> Stored:
    """What `store` wrote for these rows. Raises UserError where it is of other rows, tokens or another tokenizer."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(
            f"{path}: missing; distill.method stored_logits needs rows that generate wrote with generate.top_k"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    wanted = {
        "rows_digest": (rows_digest(rows), "of other rows than those beside it"),
        "tokenizer": (digest(tokenizer), f"of another tokenizer than {tokenizer.name_or_path}'s"),
        "encoded": (encoded_digest(examples), "of other tokens than the student's chat template makes of the rows"),
    }
    for name, (value, what) in wanted.items():
        if about[name] != value:
            hint = "; use distillation=cross_tokenizer" if name == "tokenizer" else "; run generate again"
            raise UserError(f"{path}: the stored distributions are {what} ({name} {about[name][:12]}){hint}")
    parts: dict[str, list[torch.Tensor]] = {"ids": [], "logp": [], "rest": []}
    for start in range(0, len(rows), ROWS_PER_SHARD):
        with safe_open(folder / _shard(start), framework="pt") as shard:
            for name, found in parts.items():
                found.append(shard.get_tensor(name))
    begins = [0]
    for example in examples:
        begins.append(begins[-1] + len(_places(example)))
    ids, logp, rest = (_joined(found) for found in parts.values())
    return Stored(ids, logp, rest, begins)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    kind = parts[0].dtype
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(kind, kind)
    return torch.cat([part.view(signed) for part in parts]).view(kind)


# --- learning -----------------------------------------------------------------------------------


def divergence(logits: torch.Tensor, ids: torch.Tensor, logp: torch.Tensor, beta: float = 0.0) -> torch.Tensor:
    """Generalised divergence of each place, in nats, float32 of (tokens,): the told tokens, all others one outcome.

    `logits` are the student's, (tokens, vocabulary); `ids` is (tokens, top_k), `logp` (tokens, top_k + 1) the
    teacher's, the rest's last; -inf leaves an outcome out, and its id then has to repeat another of the place. `beta`
    0 is forward KL, 1 reverse KL, between them Jensen-Shannon: Agarwal et al. 2024, section 2.
    """
    scores = logits.float()
    whole = scores.logsumexp(-1, keepdim=True)
    rest = scores.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    ours = torch.cat([scores.gather(-1, ids), rest], dim=-1) - whole
    none = logp == -torch.inf
    theirs = logp.log_softmax(-1).masked_fill(none, NOTHING)  # float16 leaves their sum a little off 1
    ours = ours.clamp(min=NOTHING).masked_fill(none, NOTHING)
    if beta == 0:
        return _kl(theirs, ours)
    if beta == 1:
        return _kl(ours, theirs)
    mixed = torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))
    return beta * _kl(theirs, mixed) + (1 - beta) * _kl(ours, mixed)


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) of log-probabilities (tokens, outcomes)."""
    return (first.exp() * (first - second)).sum(-1)


class StoredTrainer(SameSteps, SFTTrainer):
    """TRL's SFTTrainer with the divergence from what was stored as its loss, on completions alone."""

    row_ids: ByTokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        said = inputs["labels"][:, 1:] != mask.IGNORED
        first = int(said.any(0).int().argmax())
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=said.size(1) + 1 - first,
            use_cache=False,
        ).logits
        loss = divergence(logits[:, :-1][said[:, first:]], inputs["ids"], inputs["logp"]).sum()
        loss = loss / (said.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # all processes' tokens are counted, gradients are averaged
        return (loss, {"logits": logits}) if return_outputs else loss


@dataclass(frozen=True)
class Collator:
    """Rows -> a batch, padded on the right; a row's number finds what was stored for it."""

    examples: Examples
    stored: Stored
    padding: int

    def __call__(self, found: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [int(one["row"]) for one in found]
        rows = [self._row(number) for number in numbers]
        length = max(len(row.input_ids) for row in rows)
        gaps = [length - len(row.input_ids) for row in rows]
        stored = [self.stored.of(number) for number in numbers if number != BLANK] or [self.stored.nothing()]
        labels = [[mask.IGNORED, *row.labels[1:]] for row in rows]
        return {
            "input_ids": _padded([row.input_ids for row in rows], gaps, self.padding),
            "labels": _padded(labels, gaps, mask.IGNORED),
            "attention_mask": _padded([[1] * len(row.input_ids) for row in rows], gaps, 0),
            "ids": torch.cat([one["ids"] for one in stored]),
            "logp": torch.cat([one["logp"] for one in stored]),
        }

    def _row(self, number: int) -> mask.Example:
        if number != BLANK:
            return self.examples[number]
        return mask.Example("", [self.padding] * 2, [mask.IGNORED] * 2, 2, True)


def _padded(rows: Sequence[Sequence[int]], gaps: Sequence[int], value: int) -> torch.Tensor:
    return torch.tensor([[*row, *([value] * gap)] for row, gap in zip(rows, gaps, strict=True)])


def settings_of(config: Config, settings: SFTConfig) -> SFTConfig:
    """The settings, completed. Raises UserError for those that the stored distributions can't follow."""
    check_reads_weights(config, "stored_logits")
    if settings.packing or settings.padding_free:
        raise UserError("distill.trainer.packing: stored distributions are learnt row by row; set it to false")
    settings.remove_unused_columns = False
    settings.dataset_kwargs = {**(settings.dataset_kwargs or {}), "skip_prepare_dataset": True}
    return settings


def build_trainer(
    config: Config, settings: SFTConfig, student: Any, tokenizer: Any, examples: Examples, stored: Stored
) -> StoredTrainer:
    """The trainer over encoded rows and what was stored for them, adapter attached and checked."""
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "labels": [example.labels for example in examples],
        "row": list(range(len(examples))),
    }
    trainer = StoredTrainer(
        model=student,
        args=settings_of(config, settings),
        train_dataset=Dataset.from_dict(columns),
        data_collator=Collator(examples, stored, tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=peft_of(config, student),
    )
    trainer.train_dataset = with_blanks(trainer.train_dataset, settings, tokenizer.pad_token_id)
    trainer.row_ids = ByTokens(examples, None)
    begin(config, student, trainer, Path(settings.output_dir).parent)
    return trainer
