"""Greedy answers of a GGUF file to prompts that are given as token ids. `python llama_answer.py ASKED ANSWERED`

ASKED: {"model", "adapter" (null or a file), "context", "threads", "ends", "limit", "prompts": [{"ids", "text"}]}.
ANSWERED: {"answers": [{"tokens", "seconds", "ids"}]}: the end token included, where there is one; `ids` are those that
llama.cpp makes of the prompt's text, null where they are the ones that were given.

The cache of keys and values is in float32 and attention isn't fused, so that nothing is rounded but what F16 weights
ask for.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


def main() -> None:
    """Answers one prompt after the other."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = llama_cpp.Llama(
        asked["model"],
        lora_path=asked["adapter"],
        n_ctx=asked["context"],
        n_threads=asked["threads"],
        n_threads_batch=asked["threads"],
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    answers = []
    for prompt in asked["prompts"]:
        begun = time.perf_counter()
        tokens = answer(model, prompt["ids"], set(asked["ends"]), asked["limit"])
        seconds = time.perf_counter() - begun
        found = model.tokenize(prompt["text"].encode(), add_bos=False, special=True)
        ids = None if found == prompt["ids"] else found
        answers.append({"tokens": tokens, "seconds": seconds, "ids": ids})
    Path(sys.argv[2]).write_text(json.dumps({"answers": answers}), encoding="utf-8")


def answer(model: Any, prompt: list[int], ends: set[int], limit: int) -> list[int]:
    """The likeliest token at each step."""
    model.reset()
    model.eval(prompt)
    tokens: list[int] = []
    while len(tokens) < limit:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))
        tokens.append(int(logits.argmax()))
        if tokens[-1] in ends:
            break
        if len(tokens) < limit:
            model.eval(tokens[-1:])
    return tokens


if __name__ == "__main__":
    main()
