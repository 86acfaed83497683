"""An OpenAI-compatible server in a thread: a real model, real adapter folders, and failures on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "served-base"
KEY = "sk-a-key-that-nobody-may-see"


class LoraServer:
    """What vLLM's server does of what evomerge asks, by transformers and PEFT.

    Attributes:
        adapters: loaded at present.
        loaded, unloaded: names, in order.
        paths: of all requests, in order.
        faults: what happens to the next requests for completions: a status, ``hang`` or ``drop``.
        dead: whether every request is dropped.
        key: what requests must bring; empty for nothing. Repeated in refusals, as careless servers do.
        positions: said of the base.
        bias: added to every log-likelihood: another model's.
        busy, most: requests for completions under way, and the most there were at a time.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model, self.tokenizer = model.eval(), AutoTokenizer.from_pretrained(folder)
        self.adapters: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.paths: list[str] = []
        self.faults: deque[int | str] = deque()
        self.dead, self.key, self.positions, self.bias = False, key, model.config.max_position_embeddings, 0.0
        self.busy = self.most = 0
        self.lock, self.computing = threading.Lock(), threading.Lock()
        self.hold = threading.Event()
        self._folder = folder
        self._wrapped: Any = None

    def load(self, name: str, path: str) -> None:
        """As vLLM: from the folder, at once."""
        with self.computing:
            if self._wrapped is None:
                self._wrapped = peft.PeftModel.from_pretrained(self.model, path, adapter_name=name)
            else:
                self._wrapped.load_adapter(path, adapter_name=name)
            self._wrapped.eval()
        self.adapters[name] = path
        self.loaded.append(name)

    def unload(self, name: str) -> None:
        """Forget it."""
        with self.computing:
            if len(self.adapters) > 1:
                self._wrapped.delete_adapter(name)
            else:  # PEFT keeps one
                self.model, self._wrapped = self._wrapped.unload(), None
        del self.adapters[name]
        self.unloaded.append(name)

    @torch.no_grad()
    def logits(self, name: str, tokens: list[int]) -> torch.Tensor:
        """[tokens, vocabulary] of the model of a name."""
        ids = torch.tensor([tokens])
        with self.computing:
            if name == BASE and self._wrapped is not None:
                with self._wrapped.disable_adapter():
                    return self._wrapped(ids).logits[0].log_softmax(-1)
            if name != BASE:
                self._wrapped.set_adapter(name)
            return (self._wrapped or self.model)(ids).logits[0].log_softmax(-1)

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Greedy texts, with log-likelihoods of the prompt where they are asked for."""
        prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
        choices = []
        for index, prompt in enumerate(prompts):
            tokens, text, reason = list(prompt), "", "length"
            for _ in range(asked["max_tokens"]):
                tokens.append(int(self.logits(asked["model"], tokens)[-1].argmax()))
                if tokens[-1] == self.tokenizer.eos_token_id:
                    reason = "stop"
                    break
                text = self.tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
                ends = [text.find(stop) for stop in asked.get("stop") or [] if stop and stop in text]
                if ends:
                    text, reason = text[: min(ends)], "stop"
                    break
            choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
            if asked.get("echo"):
                scores = self.logits(asked["model"], tokens)
                own = [None] + [float(scores[i, token]) + self.bias for i, token in enumerate(tokens[1:])]
                best = [None] + [
                    {self.tokenizer.decode([int(row.argmax())]): float(row.max()) + self.bias} for row in scores[:-1]
                ]
                choice["logprobs"] = {"token_logprobs": own, "top_logprobs": best, "tokens": [str(t) for t in tokens]}
            choices.append(choice)
        return {
            "object": "text_completion",
            "model": asked["model"],
            "choices": choices[::-1],
        }  # by index, in any order

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        """Status and content of a request."""
        if path == "/v1/models":
            names = [BASE, *self.adapters]
            return 200, {"data": [{"id": name, "max_model_len": self.positions} for name in names]}
        if path == "/v1/load_lora_adapter":
            name, place = asked["lora_name"], asked["lora_path"]
            if name in self.adapters:
                return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded.", "code": 400}}
            if not (Path(place) / "adapter_config.json").is_file():
                return 404, {"error": {"message": f"No adapter found for {place}", "code": 404}}
            self.load(name, place)
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        if path == "/v1/unload_lora_adapter":
            if asked["lora_name"] not in self.adapters:
                return 404, {"error": {"message": f"The lora adapter '{asked['lora_name']}' cannot be found."}}
            self.unload(asked["lora_name"])
            return 200, "Success"
        if path == "/v1/completions":
            if asked["model"] not in (BASE, *self.adapters):
                return 404, {"error": {"message": f"The model `{asked['model']}` does not exist.", "code": 404}}
            return 200, self.complete(asked)
        return 404, {"detail": "Not Found"}


def _handler(server: LoraServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _respond(self, asked: dict[str, Any]) -> None:
            server.paths.append(self.path)
            given = self.headers.get("Authorization", "")
            fault: int | str = 0
            with server.lock:
                if self.path == "/v1/completions" and server.faults:
                    fault = server.faults.popleft()
            if server.dead or fault == "drop":
                self.close_connection = True
                return
            if fault == "hang":
                server.hold.wait(20)
                self.close_connection = True
                return
            if server.key and given != f"Bearer {server.key}":
                status, content = 401, {"error": {"message": f"wrong key {given}, not {server.key}"}}
            elif fault:
                status, content = int(fault), {"error": {"message": f"no luck with {given}"}}
            else:
                with server.lock:
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                try:
                    status, content = server.answer(self.path, asked)
                finally:
                    with server.lock:
                        server.busy -= 1
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def running(server: LoraServer) -> Iterator[str]:
    """The server's address, while it runs."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        server.hold.set()
        http.shutdown()
        http.server_close()
        thread.join()


def save_adapters(base: Path, root: Path, names: str = "ab", scale: float = 0.3, **settings: Any) -> dict[str, Path]:
    """Random adapters of a model, of ranks 2, 3, ...; by name."""
    found = {}
    for number, name in enumerate(names):
        model = AutoModelForCausalLM.from_pretrained(base)
        given = {"target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
        adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=2 + number, lora_alpha=4, **given))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(root / name)
        found[name] = root / name
    return found
