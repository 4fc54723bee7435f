"""Qwen3 models of random weights with the shipped tokenizer, of whatever size a test or a benchmark wants."""

from pathlib import Path

from pipelines.config.paths import PROJECT


def write(folder: Path, **shape: int) -> None:
    """Writes the model and its tokenizer into `folder`; `shape` are Qwen3Config's sizes, the seed is always one."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_key_value_heads=shape["num_attention_heads"],
        **shape,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
