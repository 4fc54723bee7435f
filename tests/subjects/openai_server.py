"""The least OpenAI-compatible server over a model's folder: `python openai_server.py FOLDER PORT`.

Independent of the package: the folder's own template, transformers' own generate.
"""

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from transformers import AutoModelForCausalLM, AutoTokenizer


def build(folder: str) -> FastAPI:
    """The server; every request is answered in turn."""
    app = FastAPI()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] != folder:
            raise HTTPException(404, f"no model {body['model']}")
        text = tokenizer.apply_chat_template(
            body["messages"], tools=body.get("tools"), tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        temperature = body.get("temperature", 1.0)
        torch.manual_seed(body.get("seed", 0))
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        made = model.generate(
            **inputs,
            **settings,
            max_new_tokens=body["max_tokens"],
            return_dict_in_generate=True,
            output_logits=True,
        )
        return _payload(body, tokenizer, made, inputs["input_ids"].shape[1])

    return app


def _payload(body: dict[str, Any], tokenizer: Any, made: Any, width: int) -> dict[str, Any]:
    new = made.sequences[0, width:]
    ended = int(new[-1]) == tokenizer.eos_token_id
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop" if ended else "length",
        "message": {"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)},
    }
    if body.get("logprobs"):
        found = torch.log_softmax(torch.cat(made.logits).double(), dim=-1).gather(1, new[:, None])[:, 0]
        tokens = zip(new.tolist(), found.tolist(), strict=True)
        choice["logprobs"] = {"content": [{"token": tokenizer.decode([t]), "logprob": value} for t, value in tokens]}
    usage = {"prompt_tokens": width, "completion_tokens": len(new), "total_tokens": width + len(new)}
    return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
