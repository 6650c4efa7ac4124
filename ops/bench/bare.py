"""The bound: what the design costs on the wire from Python, with bare nats-py and nothing around it."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

EXPECT_NONE = {"Nats-Expected-Last-Subject-Sequence": "0"}


class Answers:
    """PubAcks over one wildcard inbox."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._inbox = nc.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._tokens = itertools.count()

    async def open(self) -> "Answers":
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._answered)
        return self

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> bytes:
        token = str(next(self._tokens))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        await self._nc.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
        return await answer

    async def _answered(self, message: Msg) -> None:
        answer = self._waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if answer is not None:
            answer.set_result(message.data)


def _names(prefix: str) -> tuple[str, str]:
    return f"bare{prefix}", f"BARE_{prefix.upper()}"


async def _ensure(nc: Client, prefix: str, replicas: int) -> None:
    head, stream = _names(prefix)
    config = {
        "name": stream,
        "subjects": [f"{head}.task.>", f"{head}.result.>"],
        "storage": "file",
        "retention": "workqueue",
        "max_msgs_per_subject": 1,
        "discard": "new",
        "discard_new_per_subject": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "num_replicas": replicas,
        "republish": {"src": f"{head}.result.>", "dest": f"{head}.done.>"},
    }
    await nc.request(f"$JS.API.STREAM.CREATE.{stream}", json.dumps(config).encode(), timeout=10)
    consumer = {
        "stream_name": stream,
        "config": {
            "durable_name": "echo",
            "ack_policy": "explicit",
            "ack_wait": 6_000_000_000,
            "filter_subject": f"{head}.task.echo.>",
            "max_ack_pending": 100_000,
            "max_waiting": 8_192,
            "priority_groups": ["slots"],
            "priority_policy": "prioritized",
        },
    }
    subject = f"$JS.API.CONSUMER.CREATE.{stream}.echo.{head}.task.echo.>"
    await nc.request(subject, json.dumps(consumer).encode(), timeout=10)


async def worker(url: str, prefix: str, replicas: int, batch: int) -> None:
    """Serve echoes for ever."""
    nc = await nats.connect(url.split(","))
    await _ensure(nc, prefix, replicas)
    head, stream = _names(prefix)
    answers = await Answers(nc).open()
    inbox = nc.new_inbox()
    offered = 0
    running: set[asyncio.Task[None]] = set()

    async def offer(slots: int) -> None:
        nonlocal offered
        offered += slots
        pull = {"batch": slots, "expires": 30_000_000_000, "group": "slots", "priority": 0}
        await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.echo", json.dumps(pull).encode(), reply=inbox)

    async def handle(message: Msg) -> None:
        task_id = message.subject.split(".", 3)[3]
        ack = await answers.publish(f"{head}.result.echo.{task_id}", message.data, {**EXPECT_NONE, "Nats-TTL": "1h"})
        if b'"error"' not in ack:
            await nc.publish(message.reply, b"+ACK")
        if batch == 1:
            await offer(1)

    async def arrived(message: Msg) -> None:
        nonlocal offered
        if message.headers and "Status" in message.headers:
            offered = 0
            await offer(batch)
            return
        offered -= 1
        if batch > 1 and offered <= batch // 2:
            await offer(batch)
        task = asyncio.create_task(handle(message))
        running.add(task)
        task.add_done_callback(running.discard)

    await nc.subscribe(inbox, cb=arrived)
    await offer(batch)
    await asyncio.Event().wait()


@asynccontextmanager
async def submitter(url: str, prefix: str, replicas: int) -> AsyncIterator[Callable[[bytes], Awaitable[Any]]]:
    """A call that submits a payload and waits for its result."""
    nc = await nats.connect(url.split(","))
    await _ensure(nc, prefix, replicas)
    head, _ = _names(prefix)
    answers = await Answers(nc).open()
    done: dict[str, asyncio.Future[bytes]] = {}
    tokens = itertools.count()

    async def finished(message: Msg) -> None:
        future = done.pop(message.subject.split(".", 3)[3], None)
        if future is not None:
            future.set_result(message.data)

    await nc.subscribe(f"{head}.done.>", cb=finished, pending_msgs_limit=0, pending_bytes_limit=0)

    async def call(payload: bytes) -> bytes:
        task_id = f"t{next(tokens)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        done[task_id] = future
        guard = {**EXPECT_NONE, "Nats-Expected-Last-Subject-Sequence-Subject": f"{head}.*.echo.{task_id}"}
        ack = await answers.publish(f"{head}.task.echo.{task_id}", payload, guard)
        assert b'"error"' not in ack, ack
        return await future

    yield call
    await nc.close()
