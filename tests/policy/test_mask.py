"""The loss-mask audit: what is trained, what is refused, what is shown."""

import dataclasses
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.errors import DataError, UserError
from pipelines.policy import mask

TEMPLATES = {
    # The answer's end of turn is written only before the next message.
    "no_end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    # The prompt is rendered otherwise once an answer follows.
    "shifting": "{% if messages[-1].role == 'user' %}Question: {% else %}Q. {% endif %}"
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
}


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(small_model)


def row(query: str, answer: str, number: int = 0) -> Row:
    prompt, completion = [{"role": "user", "content": query}], [{"role": "assistant", "content": answer}]
    return Row(f"row{number}", "task", prompt, completion, answer, answer, f"f.csv:{number}", query)


ROWS = [row("Where is my card?", "card_arrival", 1), row("How old must I be?", "age_limit", 2)]


def learned(tokenizer: Any, example: mask.Example) -> str:
    return str(tokenizer.decode([label for label in example.labels if label != mask.IGNORED]))


@pytest.mark.parametrize(
    ("loss", "expected"), [("completion", "age_limit<|im_end|>\n"), ("assistant", "age_limit<|im_end|>")]
)
def test_only_the_answer_and_its_end_are_trained(tokenizer: Any, loss: str, expected: str) -> None:
    example = mask.encode(tokenizer, ROWS, {}, loss)[1]
    assert learned(tokenizer, example) == expected
    found = mask.audit([example], 512, [tokenizer.eos_token_id])
    assert found.problems(max_truncated=0) == []
    assert 0 < found.num_trained < found.num_tokens == len(example.input_ids)


def test_encoding_equals_what_trl_makes_of_the_same_rows(tokenizer: Any, small_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"prompt": r.prompt, "completion": r.completion} for r in ROWS])
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    model = AutoModelForCausalLM.from_pretrained(small_model)
    prepared = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer).train_dataset
    ours = mask.encode(tokenizer, ROWS, {}, "completion")
    assert [e.input_ids for e in ours] == prepared["input_ids"][:]
    assert [e.labels for e in ours] == prepared["labels"][:]


def slow(tokenizer: Any, rows: list[Row], loss: str) -> list[mask.Example]:
    """What `encode` must give, by transformers alone: prompt and whole tokenised apart, row by row."""
    examples = []
    for one in rows:
        whole = tokenizer.apply_chat_template([*one.prompt, *one.completion], tools=one.tools)["input_ids"]
        prompt = tokenizer.apply_chat_template(one.prompt, tools=one.tools, add_generation_prompt=True)["input_ids"]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
        learned = [int(i >= shared) for i in range(len(whole))]
        if loss == "assistant":
            learned = tokenizer.apply_chat_template(
                [*one.prompt, *one.completion], tools=one.tools, return_dict=True, return_assistant_tokens_mask=True
            )["assistant_masks"]
        labels = [token if learn else mask.IGNORED for token, learn in zip(whole, learned, strict=True)]
        answers = loss == "assistant" and any(message["role"] == "assistant" for message in one.prompt)
        examples.append(mask.Example(one.id, whole, labels, shared, shared == len(prompt), answers))
    return examples


def turns(number: int, *contents: str, system: str | None = None, tools: Any = None) -> Row:
    """A conversation of user and assistant in turn; the last turn is the completion."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Row(f"row{number}", "task", messages[:-1], messages[-1:], "a", "a", f"f.jsonl:{number}", "g", tools)


TOOLS = [{"type": "function", "function": {"name": "find", "description": "naïve <|im_end|> search"}}]
CONVERSATIONS = [
    ("Where is my card?", "card_arrival"),
    ("", ""),
    (" ", "\n"),
    ("\n\n  two\n", "  indented\n\n\tanswer  \n"),
    ("日本語で。ﬁne ½٣ e\u0301\u0338", "🙂 naïve e\u0301"),
    ("say <|im_end|>\n<|im_start|>assistant\nyes", "no<|im_end|>"),
    ("<|im_start|>", "<|im_start|>assistant\n<|endoftext|>"),
    ("word " * 300, "123,456.78 = $9 " * 50),
    ("one", "two", "three", "four", "five", "\u0301six"),
    ("{{ messages }}", "{% generation %}x{% endgeneration %}"),
]


def odd_rows() -> list[Row]:
    rows: list[Row] = []
    for contents in CONVERSATIONS:
        for system in (None, "", "Be brief.\n<|im_end|>"):
            for tools in (None, TOOLS):
                rows.append(turns(len(rows), *contents, system=system, tools=tools))
    return rows


@pytest.mark.parametrize("loss", ["completion", "assistant"])
@pytest.mark.parametrize("template", ["shipped", "trimmed", "shifting", "unmarked"])
def test_encoding_equals_the_slow_definition(small_model: Path, template: str, loss: str) -> None:
    text = (PROJECT / "data/models/chat_template.jinja").read_text(encoding="utf-8")
    changed = {
        "shipped": text,
        "trimmed": text.replace("message.content or ''", "(message.content or '').strip()"),
        "shifting": "{{ messages | length }} " + text,
        # No special token stands between prompt and answer.
        "unmarked": "> {% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %} / {% endfor %}",
    }[template]
    tokenizer = AutoTokenizer.from_pretrained(small_model, chat_template=changed)
    rows = odd_rows()
    assert mask.encode(tokenizer, rows, {}, loss) == slow(tokenizer, rows, loss)


def test_encoding_equals_the_slow_definition_on_real_rows(tokenizer: Any) -> None:
    lines = (PROJECT / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    rows = [turns(i, record["question"], record["answer"]) for i, record in enumerate(map(json.loads, lines))]
    assert mask.encode(tokenizer, rows, {}, "assistant") == slow(tokenizer, rows, "assistant")


def test_an_empty_turn_that_opens_the_text_trains_nothing(small_model: Path) -> None:
    bare = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %} {% endfor %}"
    other = AutoTokenizer.from_pretrained(small_model, chat_template=bare)
    (example,) = mask.encode(other, [turns(1, "", "card arrival")], {}, "assistant")
    assert learned(other, example) == " card arrival"


def test_a_row_that_the_template_refuses_is_named(small_model: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + "x"
    other = AutoTokenizer.from_pretrained(small_model, chat_template=strict)
    rows = [turns(1, "a", "b"), turns(2, "a", "b", system="Be brief."), turns(3, "a", "b")]
    with pytest.raises(
        DataError, match=r"^f\.jsonl:2: row row2: the model's chat template refuses it: no system turn$"
    ):
        mask.encode(other, rows, {}, "completion")


def test_truncation_that_cuts_the_answer_is_reported_with_row_ids(tokenizer: Any) -> None:
    rows = [*ROWS, row("Where is it? " * 40, "card_arrival", 3)]
    examples = mask.encode(tokenizer, rows, {}, "completion")
    found = mask.audit(examples, 60, [tokenizer.eos_token_id])
    assert found.truncated == ["row3"]
    (cut, *_) = found.problems(max_truncated=0)[-1:]
    assert "1 rows whose answer sft.trainer.max_length cuts" in cut
    assert cut.endswith("row3")
    assert any("no token is trained: row3" in line for line in found.problems(max_truncated=1))


def test_an_end_of_turn_that_is_not_trained_is_refused(tokenizer: Any, small_model: Path) -> None:
    other = AutoTokenizer.from_pretrained(small_model, chat_template=TEMPLATES["no_end"])
    found = mask.audit(mask.encode(other, ROWS, {}, "completion"), 512, [tokenizer.eos_token_id])
    assert found.end_untrained == ["row1", "row2"]
    assert "would not learn to stop: row1, row2" in found.problems(0)[0]


def test_a_prompt_that_changes_once_the_answer_follows_is_refused(tokenizer: Any, small_model: Path) -> None:
    other = AutoTokenizer.from_pretrained(small_model, chat_template=TEMPLATES["shifting"])
    found = mask.audit(mask.encode(other, ROWS, {}, "completion"), 512, [tokenizer.eos_token_id])
    assert found.prompt_changed == ["row1", "row2"]


def test_a_trained_prompt_token_is_refused(tokenizer: Any) -> None:
    (example, _) = mask.encode(tokenizer, ROWS, {}, "completion")
    example.labels[2] = example.input_ids[2]
    assert mask.audit([example], 512, [tokenizer.eos_token_id]).prompt_trained == ["row1"]


def test_assistant_loss_needs_generation_marks(small_model: Path) -> None:
    other = AutoTokenizer.from_pretrained(small_model, chat_template=TEMPLATES["no_end"])
    with pytest.raises(UserError, match=r"sft\.loss: assistant needs a chat template"):
        mask.encode(other, ROWS, {}, "assistant")


def test_page_marks_trained_tokens_and_escapes_the_rest(tokenizer: Any) -> None:
    rows = [row("Is <script>alert(1)</script> safe?", "age_limit")]
    examples = mask.encode(tokenizer, rows, {}, "completion")
    page = mask.examples_page(tokenizer, examples, 3)
    assert page.count("<mark") == sum(label != mask.IGNORED for label in examples[0].labels)
    assert "<script" not in page
    assert "1 of 1 rows" in page


def test_answers_within_the_prompt_are_learned_and_no_fault(tokenizer: Any) -> None:
    row = turns(1, "a", "b", "c", "d")
    (example,) = mask.encode(tokenizer, [row], {}, "assistant")
    learned = tokenizer.decode([token for token in example.labels if token != mask.IGNORED])
    assert "b" in learned
    assert "d" in learned
    assert mask.audit([example], None, [tokenizer.eos_token_id]).problems(0) == []
    # In a prompt without an answer a learned token is a fault whatever marked it.
    single = dataclasses.replace(example, prompt_answers=False)
    assert "prompt is trained" in mask.audit([single], None, [tokenizer.eos_token_id]).problems(0)[0]
