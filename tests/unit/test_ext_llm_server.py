"""The endpoint for tests keeps its own promises: the same answer to the same request, and an honest count."""

import json
import subprocess
import sys
import urllib.request
from typing import Any

from mesh.testing.llm import LLMServer, State, llm_server


def ask(server: LLMServer, model: str, *said: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "why?"}, *({"role": "assistant", "content": one} for one in said)]
    body = json.dumps({"model": model, "messages": messages, **more}).encode()
    with urllib.request.urlopen(f"{server.url}/chat/completions", data=body, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_the_same_conversation_is_answered_alike_and_counted_twice() -> None:
    with llm_server() as server:
        tools = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"n": {}}}}}]

        first, second = (ask(server, "calls-2", tools=tools) for _ in range(2))
        last = ask(server, "calls-2", "looking", tools=tools)

        bill = server.bill()
    assert first["choices"] == second["choices"]
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert last["choices"][0]["message"]["content"] == "After 2 of 2 steps this is the answer to: why?"
    assert [(request.conversation, request.turn, request.state) for request in bill.requests] == [
        ("why?", 0, State.FINISHED),
        ("why?", 0, State.FINISHED),
        ("why?", 1, State.FINISHED),
    ]
    assert bill.tokens_out == first["usage"]["completion_tokens"] * 2 + last["usage"]["completion_tokens"]


def test_a_process_of_its_own_ends_with_its_parents_pipe() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.testing.llm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    server = LLMServer(process.stdout.readline().strip())
    answered = ask(server, "calls-1")
    process.communicate(timeout=10)

    assert answered["model"] == "calls-1"
    assert process.returncode == 0
