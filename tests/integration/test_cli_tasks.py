"""`mesh submit`, `result`, `status`, `cancel`: what they print and what their exit codes say."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from mesh import Agent, Context, Mesh, Permanent, Transient
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where

agent = Agent("clerk", version="1.2.3", owner="desk")
gates: dict[str, asyncio.Event] = {}


class Sum(msgspec.Struct):
    terms: list[int]


@agent.handles("add")
async def add(payload: Sum) -> int:
    """Add the terms up."""
    return sum(payload.terms)


@agent.handles("refuse")
async def refuse(why: str) -> None:
    raise Permanent(why)


@agent.handles("later")
async def later(why: str) -> None:
    raise Transient(why, after_s=60)


@agent.handles("wait")
async def wait(gate: str, ctx: Context) -> str:
    await gates.setdefault(gate, asyncio.Event()).wait()
    return "open"


@agent.handles("spell")
async def spell(word: str, ctx: Context) -> int:
    for letter in word:
        await ctx.emit(letter)
    return len(word)


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[None]:
    gates.clear()
    async with hosting(agent, settings=settings):
        yield
        for gate in gates.values():
            gate.set()


async def test_submit_prints_the_value(command_line: Any, desk: None) -> None:
    ended = await command_line("submit", "add", '{"terms": [1, 2, 3]}')

    assert (ended.code, ended.out, ended.err) == (0, "6\n", "")


async def test_a_payload_can_come_from_standard_input(command_line: Any, desk: None) -> None:
    ended = await command_line("submit", "add", "-", stdin='{"terms": [20, 22]}')

    assert (ended.code, ended.out) == (0, "42\n")


async def test_with_json_one_document_tells_the_whole_outcome(command_line: Any, desk: None) -> None:
    ended = await command_line("submit", "add", '{"terms": [1]}', "--key", "k1", "--json")

    document = ended.document
    assert (ended.code, document["status"], document["value"], document["is_new"]) == (0, "done", 1, True)
    assert document["decided_by"] == {"agent": "clerk", "version": "1.2.3"}


async def test_a_key_starts_once_and_stands_for_one_payload(command_line: Any, desk: None) -> None:
    await command_line("submit", "add", '{"terms": [1]}', "--key", "k1")

    again = await command_line("submit", "add", '{"terms": [1]}', "--key", "k1")
    other = await command_line("submit", "add", '{"terms": [2]}', "--key", "k1")

    assert (again.code, again.out) == (0, "1\n")
    assert "this started nothing" in again.err
    assert other.code == 5
    assert "another payload" in other.err


async def test_what_went_wrong_is_one_line_and_an_exit_code(command_line: Any, desk: None) -> None:
    failed = await command_line("submit", "refuse", '"not today"', "--key", "f1")
    not_json = await command_line("submit", "add", "{terms}")
    illegal = await command_line("submit", "a b", "1")

    assert failed.code == 1
    assert failed.err == "mesh: refuse/f1 failed (permanent): not today\n"
    assert not_json.code == 2
    assert not_json.err.startswith("mesh: the payload is not JSON")
    assert illegal.code == 2
    assert "Traceback" not in failed.err + not_json.err + illegal.err


async def test_a_failure_is_told_as_json_too(command_line: Any, desk: None) -> None:
    ended = await command_line("submit", "refuse", '"not today"', "--json")

    assert ended.code == 1
    assert ended.document["failure"]["message"] == "not today"


async def test_without_a_mesh_the_exit_code_says_so(alone: Any) -> None:
    nowhere = await alone("submit", "add", "1")
    alone.variables |= {"MESH_NATS_URL": "nats://127.0.0.1:1", "MESH_CONNECT_WITHIN_S": "0.5"}
    silent = await alone("agents")

    assert (nowhere.code, silent.code) == (3, 3)
    assert "mesh up" in nowhere.err
    assert "127.0.0.1:1" in silent.err


async def test_parts_are_printed_as_they_come(command_line: Any, desk: None) -> None:
    plain = await command_line("submit", "spell", '"abc"', "--stream")
    as_json = await command_line("submit", "spell", '"abc"', "--stream", "--json")

    assert (plain.code, plain.out) == (0, "abc\n3\n")
    assert [part["value"] for part in as_json.document["streamed"]] == ["a", "b", "c"]
    assert as_json.document["value"] == 3


async def test_a_running_task_is_found_waited_for_and_read(command_line: Any, desk: None, mesh: Mesh) -> None:
    submitted = await command_line("submit", "wait", '"g"', "--key", "w1", "--no-wait")
    await eventually(lambda: "g" in gates)

    early = await command_line("result", "wait", "w1", "--within-s", "0.1")
    running = await command_line("status", "wait/w1", "--json")
    gates["g"].set()
    result = await command_line("result", "wait/w1")
    done = await command_line("status", "wait", "w1")

    assert submitted.out == "w1\n"
    assert early.code == 4
    assert running.document["where"] == "running"
    assert running.document["peer"]
    assert (result.code, result.out) == (0, '"open"\n')
    assert done.out.startswith("wait/w1 is done by ")


async def test_a_cancelled_task_ends_and_a_done_one_stays(command_line: Any, desk: None, mesh: Mesh) -> None:
    running = await mesh.submit("wait", "never", key="c1")
    await eventually(lambda: "never" in gates)

    cancelled = await command_line("cancel", "wait/c1", "--reason", "tired")
    outcome = await running.outcome(within_s=10)
    again = await command_line("cancel", "wait/c1")

    assert (cancelled.code, cancelled.out) == (0, "wait/c1 is cancelled; it was running\n")
    assert outcome.status == "cancelled"
    assert "it stays as it is" in again.out


async def test_a_task_that_does_not_exist_is_no_usage_error(command_line: Any, desk: None) -> None:
    codes = [(await command_line(verb, "add/nope")).code for verb in ("status", "result", "cancel")]

    assert codes == [1, 1, 1]


async def test_status_tells_a_retry_from_a_queue(command_line: Any, desk: None, mesh: Mesh) -> None:
    handle = await mesh.submit("later", "too early", key="r1")

    async def retries() -> bool:
        return (await handle.status()).where is Where.RETRYING

    await eventually(retries)
    retrying = await command_line("status", "later/r1")
    await handle.cancel()
    await handle.outcome(within_s=10)
    cancelled = await command_line("status", "later/r1")

    assert "waits for a retry until" in retrying.out
    assert "too early" in retrying.out
    assert "later/r1 is cancelled" in cancelled.out


async def test_status_says_that_nobody_serves_a_task(command_line: Any, settings: Settings, mesh: Mesh) -> None:
    await mesh.submit("add", {"terms": []}, key="u1")
    never = await command_line("status", "add/u1")
    async with hosting(agent, settings=settings):
        await mesh.handle("add", "u1").result(within_s=10)
    await mesh.submit("add", {"terms": []}, key="u2")

    no_longer = await command_line("status", "add/u2")

    assert "no peer has ever served add" in never.out
    assert "no peer serves add now" in no_longer.out


async def test_submit_says_on_standard_error_that_nobody_serves_it(command_line: Any, mesh: Mesh) -> None:
    ended = await command_line("submit", "add", '{"terms": []}', "--within-s", "2.5")

    assert ended.code == 4
    assert "nobody serves it" in ended.err
    assert "not done within 2.5 s" in ended.err


async def test_ctrl_c_ends_a_waiting_submission_quietly(command_line: Any, desk: None) -> None:
    async with command_line.running("submit", "wait", '"never"') as process:
        await eventually(lambda: "never" in gates)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert (process.returncode, out, err) == (130, b"", b"")


async def test_help_names_every_command_and_exit_code(alone: Any) -> None:
    bare, version = await alone(), await alone("--version")

    assert bare.code == 0
    commands = "demo up run submit result status trace signal cancel schedule inbox dead agents top map report events"
    for word in f"{commands} decisions pause doctor drain".split():
        assert f"│ {word} " in bare.out
    assert "130" in bare.out
    assert version.out.startswith("mesh ")
