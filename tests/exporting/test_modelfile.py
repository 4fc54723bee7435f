"""A chat template in Ollama's language: found where it puts text around roles, left out where it does more."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from pipelines.config.paths import PROJECT
from pipelines.exporting.modelfile import modelfile, roles_of

CHATML = (PROJECT / "data/models/tiny/chat_template.jinja").read_text(encoding="utf-8")
LLAMA = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ no_such_role() }}"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Where is my card?"},
    {"role": "assistant", "content": "card_arrival"},
    {"role": "user", "content": "Thanks"},
]


def rendering(source: str) -> Any:
    # As chat templates are written for: the marks of what the assistant says are transformers' own.
    plain = source.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain)

    def render(messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        return template.render(messages=messages, add_generation_prompt=prompt, tools=None)

    return render


def test_the_shipped_template_is_written_in_full() -> None:
    render = rendering(CHATML)
    roles = roles_of(render)
    assert roles is not None
    led = [{"role": "system", "content": "Be brief."}, *TALK]
    assert roles.text(led) == render(led, True)
    text = modelfile("model.gguf", None, roles, ["<|im_end|>"], 24)
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>')
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text
    assert text.endswith('PARAMETER num_predict 24\nPARAMETER stop "<|im_end|>"\n')


def test_what_comes_once_before_all_stays_there() -> None:
    render = rendering(LLAMA)
    roles = roles_of(render)
    assert roles is not None
    assert set(roles.around) == {"user", "assistant"}
    assert roles.text(TALK) == render(TALK, True)
    assert roles.text(TALK[:1]).startswith("<s>[INST]")
    assert roles.text(TALK).count("<s>") == 1


def test_a_template_that_does_more_is_left_to_the_file() -> None:
    for source in (
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",  # counts
        "{% for m in messages %}{{ m.content | upper }}{{ m.content }}{% endfor %}",  # says it twice
        "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last else '' }}\n{% endfor %}",  # forgets
    ):
        roles = roles_of(rendering(source))
        assert roles is None
        assert "TEMPLATE" not in modelfile("model.gguf", None, roles, [], 8)


def test_an_adapter_is_named_beside_its_base() -> None:
    assert modelfile("base.gguf", "adapter.gguf", None, [], 8).startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
