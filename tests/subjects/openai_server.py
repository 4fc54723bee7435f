"""The least OpenAI-compatible server over a model's folder: `python openai_server.py FOLDER PORT`.

Independent of the package: the folder's own template, transformers' own generate. Completions of token ids with
`prompt_logprobs` and /tokenize are as vLLM has them, with its limits and its words where they are gone over.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from transformers import AutoModelForCausalLM, AutoTokenizer


def build(folder: str, max_logprobs: int = 20, max_model_len: int = 1024) -> FastAPI:
    """The server; every request is answered in turn. `max_logprobs` -1 is the whole vocabulary."""
    app = FastAPI()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def check_model(body: dict[str, Any]) -> None:
        if body["model"] != folder:
            raise HTTPException(404, f"no model {body['model']}")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        check_model(body)
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

    @app.post("/v1/completions")
    async def score(body: dict[str, Any]) -> JSONResponse:
        check_model(body)
        ids, count = body["prompt"], body.get("prompt_logprobs")
        check_prompt(ids, body, model.config.vocab_size, max_logprobs, max_model_len)
        with torch.inference_mode():
            logp = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        choice = {"index": 0, "text": tokenizer.decode([int(logp[-1].argmax())]), "finish_reason": "length"}
        if count is not None:
            choice["prompt_logprobs"] = prompt_logprobs(tokenizer, ids, logp, count)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        # FastAPI's own encoder takes minutes over a vocabulary a place.
        return JSONResponse({"object": "text_completion", "model": folder, "choices": [choice], "usage": usage})

    @app.post("/tokenize")
    async def tokenize(body: dict[str, Any]) -> dict[str, Any]:
        check_model(body)
        text = tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=body.get("add_generation_prompt", True)
        )
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens}

    return app


def check_prompt(ids: Sequence[int], body: dict[str, Any], size: int, max_logprobs: int, max_model_len: int) -> None:
    """Refuses as vLLM does what goes over a limit."""
    count, most = body.get("prompt_logprobs"), size if max_logprobs == -1 else max_logprobs
    if count is not None and count > most:
        raise HTTPException(400, f"Requested prompt logprobs of {count}, which is greater than max allowed: {most}")
    if max(ids) >= size:
        raise HTTPException(400, f"Token id {max(ids)} is out of vocabulary")
    if len(ids) + body["max_tokens"] > max_model_len:
        raise HTTPException(400, f"This model's maximum context length is {max_model_len} tokens.")


def prompt_logprobs(tokenizer: Any, ids: Sequence[int], logp: torch.Tensor, count: int) -> list[Any]:
    """vLLM's list: nothing for the first token, then `count` tokens a place and the one that is there."""
    texts: dict[int, str] = {}
    found: list[Any] = [None]
    for place, there in zip(logp[:-1], ids[1:], strict=True):
        best = place.topk(min(count, len(place))).indices.tolist()
        ranks = {token: rank for rank, token in enumerate(best, 1)}
        ranks.setdefault(there, int((place > place[there]).sum()) + 1)
        values = place.tolist()
        found.append(
            {
                str(token): {
                    "logprob": values[token],
                    "rank": rank,
                    "decoded_token": texts.setdefault(token, tokenizer.decode([token])),
                }
                for token, rank in ranks.items()
            }
        )
    return found


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


@contextlib.contextmanager
def in_thread(app: FastAPI) -> Iterator[str]:
    """The server in a thread of this process; its address up to /v1."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    options = dict(option.split("=") for option in sys.argv[3:])
    limits = {name: int(value) for name, value in options.items()}
    uvicorn.run(build(sys.argv[1], **limits), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
