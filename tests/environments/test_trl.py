"""A real run of TRL's GRPO on the bank: two steps, its loop of tools, and the verify as its reward."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.row import Row
from pipelines.environments import replay
from pipelines.environments.calls import transcript
from pipelines.environments.environment import digest
from pipelines.environments.episode import play
from pipelines.environments.rows import generate
from pipelines.environments.tools import environment_class, offered, state_of
from pipelines.policy.tool_parsing import ready_for_tools
from tests.environments.conftest import MakeTask

STEPS, ROWS = 2, 4


def rows() -> list[Row]:
    found = []
    for number, record in enumerate(generate(ROWS, 8, {"kinds": ["raise"]})):
        kept = {name: record[name] for name in ("environment_seed", "goal")}
        asked = record["messages"]
        found.append(
            Row(f"{number}", "bank", asked[:1], asked[1:], record["answer"], record["label"], "b", "", kept=kept)
        )
    return found


class Scripted:
    """Puts the demonstrations in place of what the model samples, turn by turn; every other rollout does nothing.

    What a random model writes holds no call. The loop that runs the calls, masks their answers and asks again is TRL's.
    """

    def __init__(self, trainer: Any, asked: list[Row]) -> None:
        self.tokenizer, self.by_text = trainer.processing_class, {row.prompt[0]["content"]: row for row in asked}
        self.count = 0

    def __call__(self, prompt_ids: list[list[int]], *args: Any, **settings: Any) -> tuple[list[list[int]], None]:
        return [self.turn(self.tokenizer.decode(ids)) for ids in prompt_ids], None

    def turn(self, prompt: str) -> list[int]:
        row = next(row for text, row in self.by_text.items() if text in prompt)
        num_turns = prompt.count("<|im_start|>assistant\n")
        if num_turns == 1:
            self.count += 1
        silent = num_turns == 1 and self.count % 2 == 0
        spoken = [message for message in row.completion if message["role"] == "assistant"]
        text = "No." if silent else self.written(spoken[num_turns - 1])
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def written(self, message: dict[str, Any]) -> str:
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls") or []]
        return message["content"] + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def small(tokenizer: Any) -> Any:
    """A random Qwen3 of one layer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def settings(folder: Path) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=300,
        max_tool_calling_iterations=3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        beta=0.0,
    )


def test_grpo_trains_on_episodes_that_verify_judges(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOTrainer

    from pipelines.config.paths import PROJECT

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    ready_for_tools(tokenizer)
    model = small(tokenizer)
    verify, asked = replay.verifier(make_task()), rows()
    seen: list[tuple[Row, str, bool, dict[str, Any]]] = []

    def reward(completions: list[Any], environments: list[Any], id: list[str], **columns: Any) -> list[float]:
        told = []
        for messages, environment, number in zip(completions, environments, id, strict=True):
            row, text = asked[int(number)], transcript(messages)
            told.append(verify(text, row).correct)
            seen.append((row, text, told[-1], dict(state_of(environment))))
        return [float(correct) for correct in told]

    columns = [
        {"prompt": row.prompt, "id": row.id, "kept": json.dumps(row.kept), "answer": row.answer} for row in asked
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        processing_class=tokenizer,
        environment_factory=environment_class("bank"),
        train_dataset=Dataset.from_list(columns),
        args=settings(tmp_path),
    )
    before = model.model.embed_tokens.weight.detach().clone()
    monkeypatch.setattr(trainer, "_generate_single_turn", Scripted(trainer, asked))
    trainer.train()

    logged = trainer.state.log_history
    assert [entry["reward"] for entry in logged if "reward" in entry] == [0.5] * STEPS
    assert all(entry["tools/failure_frequency"] == 0.0 for entry in logged if "reward" in entry)
    assert not torch.equal(before, model.model.embed_tokens.weight)
    assert len(seen) == 4 * STEPS
    for row, text, correct, state in seen:
        # The verify's replay ends where TRL's own environment did.
        assert correct == (digest(state) == row.answer)
        assert correct == ('"tool_calls"' in text)

    row, text = next((row, text) for row, text, correct, _ in seen if correct)
    theirs = json.loads(text)
    turns = iter(Scripted(trainer, [row]).written(message) for message in theirs if message["role"] == "assistant")
    (episode,) = play([row], lambda messages, tools: [next(turns)], environment_class("bank"), max_turns=4)
    assert episode.messages == theirs
    assert [message["role"] for message in theirs] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert offered(environment_class("bank"))[2]["function"]["name"] == theirs[1]["name"] == "show"
