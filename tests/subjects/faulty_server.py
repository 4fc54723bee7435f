"""An OpenAI-compatible server that misbehaves as it is told; run as `python faulty_server.py`, it prints its port.

What a request asks for stands in its last message, as `<<STEP|STEP|...>>`: the n-th time that a message comes, its
n-th step is taken, and the last one from then on. A model's name makes the whole server behave in a way. Without
either a request is answered with "one two three four". GET /seen tells what has come in, POST /forget forgets it.
"""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RIGHT_KEY = "sk-right-0123456789"
PATIENCE_S = 5.0


class State:
    """What has come in."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.times: Counter[str] = Counter()
        self.opens_at: dict[str, float] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_at_once = self.num_answered = self.num_tokens = 0

    def seen(self) -> dict[str, Any]:
        names = ("bodies", "keys", "most_at_once", "num_answered", "num_tokens")
        return {name: getattr(self, name) for name in names}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path == "/seen"
        self.reply(200 if found else 404, json.dumps(self.server.state.seen() if found else {"detail": "Not Found"}))

    def do_POST(self) -> Any:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or "null")
        if self.path == "/forget":
            self.server.state = State()
            return self.reply(200, "{}")
        if self.path.partition("?")[0] != "/v1/chat/completions":
            return self.reply(404, json.dumps({"detail": "Not Found"}))
        self.body, self.key, self.state = body, self.headers.get("authorization"), self.server.state
        with self.state.changed:
            self.state.bodies.append(body)
            self.state.keys.append(self.key)
            self.state.under_way += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.under_way)
            self.state.changed.notify_all()
        return getattr(self, f"model_{body['model']}", self.step)()

    # Models

    def model_locked(self) -> None:
        if self.key == f"Bearer {RIGHT_KEY}":
            return self.step()
        return self.error(401, f"Incorrect API key provided: {(self.key or '').removeprefix('Bearer ')}")

    def model_missing(self) -> None:
        self.error(404, "The model `missing` does not exist")

    def model_warm(self) -> None:
        self.error(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")

    def model_page(self) -> None:
        self.finish_with(200, "<!doctype html>\n<title>Welcome</title>", kind="text/html")

    def model_moved(self) -> None:
        self.finish_with(308, "", {"Location": "https://elsewhere.example/v1"})

    def model_down(self) -> None:
        self.error(503, "overloaded")

    def model_strict(self) -> None:
        """Takes no logprobs, and says so."""
        if "logprobs" in self.body:
            return self.error(400, "Unsupported parameter: 'logprobs' is not supported with this model.")
        return self.step()

    def model_vague(self) -> None:
        """Takes neither logprobs nor a seed, and doesn't say what it minds."""
        if "logprobs" in self.body or "seed" in self.body:
            return self.error(422, "invalid request")
        return self.step()

    def model_modern(self) -> None:
        if "max_tokens" in self.body:
            return self.error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return self.step()

    def model_wordless(self) -> None:
        self.complete({"content": None}, "length")

    # Steps

    def step(self) -> None:
        text = str(self.body["messages"][-1]["content"])
        told = re.search(r"<<(.*?)>>", text, re.DOTALL)
        if not told:
            return self.say("one two three four")
        steps = told.group(1).split("|")
        with self.state.changed:
            name, _, value = steps[min(self.state.times[text], len(steps) - 1)].partition(":")
            self.state.times[text] += 1
        return getattr(self, f"step_{name}")(value)

    def step_say(self, text: str) -> None:
        self.say(text)

    def step_key(self, before: str) -> None:
        """Gives the key away, after so many signs."""
        self.say("-" * int(before) + (self.key or ""))

    def step_refused_key(self, before: str) -> None:
        self.error(400, "-" * int(before) + (self.key or ""))

    def step_slow(self, seconds: str) -> None:
        time.sleep(float(seconds))
        self.say("late")

    def step_drip(self, seconds: str) -> None:
        """A byte at a time, as long as the client waits."""
        self.leave()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            self.wfile.write(b" ")
            time.sleep(0.05)
        self.close_connection = True

    def step_together(self, count: str) -> None:
        """Answers once that many requests are under way."""
        with self.state.changed:
            self.state.changed.wait_for(lambda: self.state.most_at_once >= int(count), PATIENCE_S)
        self.say("together")

    def step_last(self, count: str) -> None:
        """Answers once that many others have been answered."""
        with self.state.changed:
            waited = self.state.changed.wait_for(lambda: self.state.num_answered >= int(count), PATIENCE_S)
        self.say("last" if waited else "too soon")

    def step_busy(self, seconds: str) -> None:
        """Too many requests: it says when to come again, and minds who comes sooner."""
        text = str(self.body["messages"][-1]["content"])
        now = time.monotonic()
        opens_at = self.state.opens_at.setdefault(text, now + float(seconds))
        if now >= opens_at:
            return self.say("in time")
        return self.error(429, "slow down", {"Retry-After": seconds})

    def step_http(self, status: str) -> None:
        self.error(int(status), f"told to say {status}")

    def step_drop(self, _: str) -> None:
        self.leave()
        self.close_connection = True

    def step_half(self, _: str) -> None:
        self.leave()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def step_raw(self, text: str) -> None:
        self.finish_with(200, text)

    def step_content(self, value: str) -> None:
        """A whole completion with any JSON in the place of the text."""
        self.complete({"content": json.loads(value)}, "stop")

    def step_message(self, value: str) -> None:
        self.complete(json.loads(value), "tool_calls")

    def step_unmetered(self, _: str) -> None:
        self.complete({"content": "one two"}, "stop", metered=False)

    def step_prefer(self, word: str) -> None:
        """A judge: A or B, whichever answer holds the word; the answers stand behind `A=` and `B=`."""
        text = str(self.body["messages"][-1]["content"])
        first, second = text.split("A=")[1].split("B=")
        self.say("C" if (word in first) == (word in second) else "A" if word in first else "B")

    def step_waver(self, word: str) -> None:
        """The same judge, which says more than its letter where it is B."""
        text = str(self.body["messages"][-1]["content"])
        self.say("A" if word in text.split("A=")[1].split("B=")[0] else "B, clearly")

    # Replies

    def say(self, text: str) -> None:
        words = text.split(" ")
        kept = words[: self.body.get("max_tokens") or self.body.get("max_completion_tokens")]
        self.complete({"content": " ".join(kept)}, "stop" if kept == words else "length")

    def complete(self, message: dict[str, Any], finish_reason: str, metered: bool = True) -> None:
        count = len(str(message.get("content") or "").split())
        payload: dict[str, Any] = {
            "model": f"{self.body['model']}-2026",
            "system_fingerprint": "fp_1",
            "choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish_reason}],
        }
        if metered:
            payload["usage"] = {"prompt_tokens": len(self.body["messages"]), "completion_tokens": count}
        if self.body.get("logprobs") and self.body["model"] != "silent":
            payload["choices"][0]["logprobs"] = {"content": [{"logprob": -0.5}] * count}
        with self.state.changed:
            self.state.num_tokens += count
        self.finish_with(200, json.dumps(payload))

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.finish_with(status, json.dumps({"error": {"message": message, "type": "error"}}), headers)

    def finish_with(
        self, status: int, text: str, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.leave()
        self.reply(status, text, {"Content-Type": kind, **(headers or {})})

    def leave(self) -> None:
        """No longer under way: before the reply, after which the next request may come at any time."""
        with self.state.changed:
            self.state.under_way -= 1
            self.state.num_answered += 1
            self.state.changed.notify_all()

    def reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    state = State()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that don't wait are what this server is for."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
