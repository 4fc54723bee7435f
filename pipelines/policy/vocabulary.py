"""Whether student and teacher mean the same by a token, and write a conversation with the same tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.errors import UserError
from pipelines.policy.template import render
from pipelines.product import digest_of

SPECIAL = ("bos_token", "eos_token")  # which pads differs, and matters to nobody
PROBE = [
    {"role": "system", "content": "A probe: 12 + 30 = 42."},
    {"role": "user", "content": "Où est l'«été»? naïve 東京 🙂\n\tif x_1 >= 3.5:"},
    {"role": "assistant", "content": 'Là-bas. {"city": "Zürich"}'},
]
SHOWN = 12
PROBED = 192  # tokens of the vocabulary, at even distances


def check_same(student: Any, tokenizer: Any, teacher: Any, template: Mapping[str, Any], method: str) -> None:
    """Raises UserError where the loaded `teacher` can't tell `student`, of `tokenizer`, token by token.

    A teacher whose head has rows more than the student's, behind all tokens, is cut to the student's.
    """
    if difference := vocabulary_difference(tokenizer, teacher.tokenizer):
        raise UserError(
            f"teacher.at: distill.method {method} needs one vocabulary, and the teacher's differs: {difference}; "
            "use distillation=cross_tokenizer"
        )
    if difference := template_difference(tokenizer, template, teacher.tokenizer, teacher.template):
        raise UserError(
            f"teacher.at: distill.method {method} needs one chat template, and the teacher's differs: {difference}"
        )
    _fit_head(student, teacher.model, len(tokenizer), method)


def vocabulary_difference(student: Any, teacher: Any) -> str | None:
    """What tells the vocabularies of two tokenizers apart, in words; None where nothing does."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    found = []
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} tokens for the student, {len(theirs)} for the teacher")
    if ours != theirs:
        mine, other = ({number: token for token, number in vocabulary.items()} for vocabulary in (ours, theirs))
        number = min(n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n))
        found.append(_told(f"token {number}", mine.get(number), other.get(number)))
    pairs = ((name, getattr(student, name), getattr(teacher, name)) for name in SPECIAL)
    found += [_told(name, own, its) for name, own, its in pairs if own != its]
    return "; ".join(found) or None


def _told(what: str, own: str | None, its: str | None) -> str:
    ours, theirs = ("none" if token is None else repr(token) for token in (own, its))
    return f"{what} is {ours} for the student, {theirs} for the teacher"


def template_difference(
    student: Any, switches: Mapping[str, Any], teacher: Any, their_switches: Mapping[str, Any]
) -> str | None:
    """Where the two write a conversation with other tokens, in words; None where they don't.

    Both have one vocabulary.
    """

    def theirs(messages: Sequence[Mapping[str, Any]], prompt: bool) -> list[int]:
        return render(teacher, [messages], [None], their_switches, prompt)[0]

    return rendering_difference(student, switches, theirs)


def rendering_difference(
    student: Any,
    switches: Mapping[str, Any],
    theirs: Callable[[Sequence[Mapping[str, Any]], bool], Sequence[int] | None],
) -> str | None:
    """As `template_difference`, with a function that writes a conversation, or a prompt, as the teacher's tokens.

    A template that knows no system message is asked without one; None is compared with nothing.
    """
    from jinja2 import TemplateError

    for messages in (PROBE, PROBE[1:]):
        for prompt in (False, True):
            asked = messages[:-1] if prompt else messages
            try:
                ours = render(student, [asked], [None], switches, prompt)[0]
                other = theirs(asked, prompt)
            except TemplateError:
                continue
            if other is not None and ours != other:
                return _parted(student, ours, other)
    return None


def _parted(tokenizer: Any, ours: Sequence[int], theirs: Sequence[int]) -> str:
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(ours), len(theirs)) if same is None else same
    mine, other = (tokenizer.decode(ids[at : at + SHOWN]) or "nothing more" for ids in (ours, theirs))
    return f"after {at} tokens of a probe the student's goes on with {mine!r}, the teacher's with {other!r}"


def probe(tokenizer: Any, template: Mapping[str, Any]) -> list[int]:
    """Token ids of the student's that tell vocabularies apart: of many signs, and from all over the vocabulary."""
    told = render(tokenizer, [PROBE[1:]], [None], template, prompt=False)[0]
    size = len(tokenizer)
    return told + [size - 1 - number * size // PROBED for number in range(min(PROBED, size))]


def digest(tokenizer: Any) -> str:
    """sha256 of what decides a text's tokens, in hex; a backend's padding and truncation, which change with use, don't.

    A tokenizer without a backend is told by its vocabulary.
    """
    if not tokenizer.is_fast:
        return digest_of(tokenizer.get_vocab())
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest_of({name: value for name, value in settings.items() if name not in ("padding", "truncation")})


def _fit_head(student: Any, teacher: Any, tokens: int, method: str) -> None:
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if theirs > ours >= tokens:
        teacher.resize_token_embeddings(ours)
    elif theirs != ours:
        raise UserError(
            f"teacher.at: distill.method {method} needs heads of one size: the student's has {ours} rows for {tokens} "
            f"tokens, the teacher's {theirs}"
        )
