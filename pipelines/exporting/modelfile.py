"""Ollama's Modelfile: the GGUF file, how it was evaluated, and the chat template in Ollama's own language."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

Render = Callable[[Sequence[Mapping[str, str]], bool], str]  # messages and whether an answer begins -> text
ROLES = ("system", "user", "assistant")
MARKS = ("\u2460", "\u2461", "\u2462", "\u2463")  # characters that no template holds


@dataclass(frozen=True)
class Roles:
    """What a chat template writes: once before all, around each role's content, and before an answer."""

    head: str
    around: dict[str, tuple[str, str]]
    answer: str

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation up to where the answer begins."""
        return self.head + "".join(self._message(message) for message in messages) + self.answer

    def _message(self, message: Mapping[str, str]) -> str:
        before, after = self.around[message["role"]]
        return before + message["content"] + after

    def as_go(self) -> str:
        """The template of Go's text/template that Ollama takes."""
        branches = [
            f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        return f"{self.head}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def roles_of(render: Render) -> Roles | None:
    """What the template does with each role, found by rendering marks; None where it does more than put text around."""
    question, answer, again, system = MARKS
    alone = _parts(render([_user(question)], False), [question])
    chat = [_user(question), {"role": "assistant", "content": answer}, _user(again)]
    talk = _parts(render(chat, False), [question, answer, again])
    whole = render([_user(question)], True)
    if alone is None or talk is None or not whole.startswith(render([_user(question)], False)):
        return None
    after_user, after_answer = alone[1], ""
    before_answer = talk[1].removeprefix(after_user)
    before_user = _shared_end(talk[2], alone[0])
    after_answer = talk[2].removesuffix(before_user)
    head = alone[0].removesuffix(before_user)
    around = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    led = _parts(_led(render, [{"role": "system", "content": system}, _user(question)]), [system, question])
    if led is not None and led[0].startswith(head) and led[1].endswith(before_user):
        around = {"system": (led[0].removeprefix(head), led[1].removesuffix(before_user)), **around}
    found = Roles(head, around, whole.removeprefix(render([_user(question)], False)))
    probes = [[_user(question)], chat, [{"role": "system", "content": system}, *chat] if "system" in around else chat]
    return found if all(found.text(probe) == render(probe, True) for probe in probes) else None


def modelfile(weights: str, adapter: str | None, roles: Roles | None, stops: Sequence[str], limit: int) -> str:
    """The file's text; `weights` and `adapter` are files beside it, `stops` texts that end an answer."""
    lines = [f"FROM ./{weights}"] + ([f"ADAPTER ./{adapter}"] if adapter else [])
    go = roles.as_go() if roles else None
    if go is None or '"""' in go or any("{{" in part for part in _texts(roles)):
        lines.append("# The chat template says more than Ollama's language can: Ollama takes the one in the GGUF file.")
    else:
        lines.append(f'TEMPLATE """{go}"""')
    lines += ["# As it was evaluated: greedy, so many tokens at most.", "PARAMETER temperature 0"]
    lines += ["PARAMETER repeat_penalty 1", f"PARAMETER num_predict {limit}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def _led(render: Render, messages: Sequence[Mapping[str, str]]) -> str:
    """With a system message; empty where the template refuses one, as some do with an error."""
    try:
        return render(messages, False)
    except TemplateError:
        return ""


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _texts(roles: Roles | None) -> list[str]:
    if roles is None:
        return []
    return [roles.head, roles.answer, *(text for pair in roles.around.values() for text in pair)]


def _parts(text: str, marks: Sequence[str]) -> list[str] | None:
    """The text between the marks, each of which has to be there once, in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        parts.append(before)
    return [*parts, text]


def _shared_end(a: str, b: str) -> str:
    count = 0
    while count < min(len(a), len(b)) and a[-count - 1] == b[-count - 1]:
        count += 1
    return a[len(a) - count :]
