"""The loss-mask audit: what is trained, what is refused, what is shown."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipelines.dataset.row import Row
from pipelines.errors import UserError
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
