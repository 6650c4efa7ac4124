"""What live peers export: everything that the catalogue has, nothing else, and no more of it for more tasks."""

import asyncio
import urllib.request
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tenacity import wait_fixed

from contracts import headers as names
from contracts import wire
from contracts.outcome import FailureKind
from contracts.subjects import Identity
from contracts.task import Task
from mesh import Agent, Context, Escalate, Handoff, Ladder, Mesh, TaskCancelled, TaskFailed
from mesh.errors import Permanent, Throttled, Transient
from mesh.human import agent as people
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.telemetry.catalogue import CALLERS_MAX, CATALOGUE, CHOICES_MAX, OTHERS, UNSERVED_MAX
from mesh.testing import eventually, hosting

LONG_S = 40.0
SURVEY_S = 0.2
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


async def scrape(peer: Peer, accept: str = OPENMETRICS) -> str:
    request = urllib.request.Request(f"{peer.metrics_url}/metrics", headers={"Accept": accept})

    def fetch() -> str:
        with urllib.request.urlopen(request, timeout=10) as page:
            text: str = page.read().decode()
            return text

    return await asyncio.to_thread(fetch)


def samples(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(peer: Peer, name: str, **labels: str) -> float | None:
    return peer.metrics.registry.get_sample_value(name, labels)


def surveyed(settings: Settings, **more: Any) -> Settings:
    return settings.model_copy(update={"survey_s": SURVEY_S, **more})


def desk() -> Agent:
    """An agent that does everything a task can meet."""
    agent = Agent("desk", version="7", owner="support")
    agent.limit("llm", concurrent=4)
    failed: set[int] = set()

    @agent.handles("answer", concurrency=4, attempts=3, wait=wait_fixed(0.01))
    async def answer(number: int, ctx: Context) -> int:
        ctx.spent(tokens_in=10, tokens_out=2, usd=0.01)
        ctx.explain(confidence=0.8, model="m", model_digest="model-1", prompt_digest="prompt-1")
        async with ctx.breaker("openai"), ctx.limit("llm"):
            pass
        if number == 1 and number not in failed:
            failed.add(number)
            raise Transient("once")
        if number == 2 and number not in failed:
            failed.add(number)
            raise Throttled("not now", after_s=0.01)
        if number == 3:
            raise Permanent("never")
        return number

    @agent.handles("plain")
    async def plain(number: int) -> int:
        return number

    @agent.handles("pass", ladder=Ladder(0.9))
    async def passing(number: int) -> int | Handoff | Escalate:
        return Handoff(plain, number) if number else Escalate("not sure", 0.3, value=0)

    @agent.handles("work", concurrency=8)
    async def work(number: int, ctx: Context) -> int:
        await ctx.sleep(0.05)
        return sum(await ctx.gather(ctx.call(answer, 0), ctx.call(plain, number)))

    return agent


async def test_a_peer_exports_what_the_catalogue_has_and_nothing_else(mesh: Mesh, settings: Settings) -> None:
    known = {metric.name.removesuffix("_total"): metric for metric in CATALOGUE}
    await mesh.submit("nobody-home", 1)

    async with hosting(desk(), people, settings=surveyed(settings, hot_wait_s=0.0)) as peer:
        peer.metrics.exemplar = lambda: {"trace_id": TRACE_ID}
        handles = [await mesh.submit("answer", number) for number in range(5)]
        handles += [await mesh.submit("work", 1), await mesh.submit("pass", 1)]
        for handle in handles:
            if handle is handles[3]:
                with pytest.raises(TaskFailed):
                    await handle.result(within_s=LONG_S)
            else:
                await handle.result(within_s=LONG_S)
        late = {names.TASK: wire.encode(Task(deadline=1.0)).decode()}
        await mesh.bus.store(mesh.bus.subjects.task(Identity("plain", "late")), b"1", late)
        await eventually(lambda: value(peer, "mesh_deadline_misses_total", capability="plain") == 1)
        escalated = await mesh.submit("pass", 0)
        await eventually(lambda: value(peer, "mesh_inbox_waiting") == 1)
        await escalated.cancel()
        with pytest.raises(TaskCancelled):
            await escalated.result(within_s=LONG_S)
        peer.host.metrics.of("plain", peer.intakes[1].capability.decided_by).decided("yes", 0.4, model_digest="m")
        await eventually(lambda: value(peer, "mesh_dead_letters_kept", capability="answer") == 1)
        await eventually(lambda: value(peer, "mesh_unserved_tasks", capability="nobody-home") == 1)
        open_, plain = await scrape(peer), await scrape(peer, "")

    families = {family.name: family for family in text_string_to_metric_families(open_)}
    assert set(families) == set(known)
    for name, family in families.items():
        metric = known[name]
        assert (family.type, family.documentation) == (metric.type, metric.meaning)
        # None of the streams has a limit of messages here.
        assert family.samples or name == "mesh_stream_messages_max", name
        for sample in family.samples:
            labels = dict(sample.labels)
            labels.pop("le", None)
            assert sample.name.removeprefix(name) in SUFFIXES[metric.type]
            assert set(labels) == set(metric.labels), name
            for label, allowed in metric.values.items():
                assert labels[label] in allowed
    # What is read without OpenMetrics has the same series, and none of when they began.
    told = {line.partition(" ")[0] for line in plain.splitlines() if not line.startswith("#")}
    assert told == {line.partition(" ")[0] for line in open_.splitlines() if not line.startswith("#")}


async def test_ten_thousand_ids_have_no_more_series_than_one(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("echo", version="1")

    @agent.handles("echo", concurrency=200)
    async def echo(text: str) -> str:
        return text

    async with hosting(agent, settings=settings) as peer:
        await (await mesh.submit(echo, "warm", key="warm")).result(within_s=LONG_S)
        await eventually(lambda: value(peer, "mesh_survey_age_seconds") is not None)
        before = {(sample.name, *sorted(sample.labels.items())) for sample in samples(await scrape(peer))}
        todo = iter(range(10_000))

        async def some() -> None:
            for number in todo:
                await (await mesh.submit(echo, "x", key=f"order-{number}")).result(within_s=LONG_S)

        async with asyncio.TaskGroup() as fibers:
            for _ in range(500):
                fibers.create_task(some())
        text = await scrape(peer)

    after = {(sample.name, *sorted(sample.labels.items())) for sample in samples(text)}
    assert value(peer, "mesh_tasks_total", capability="echo", version="1", status="done") == 10_001
    assert after == before
    assert len(after) < 300
    assert "order-" not in text


async def test_whatever_raw_publishers_and_handlers_make_up_has_few_series(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("odd")

    @agent.handles("odd", concurrency=50, attempts=1)
    async def odd(number: int, ctx: Context) -> int:
        ctx.explain(confidence=0.5, model_digest=f"model-{number}", prompt_digest=f"prompt-{number}")
        if number % 3 == 0:
            raise type(f"Error{number}", (Exception,), {})(f"reason {number}")
        if number % 3 == 1:
            raise Permanent(f"reason {number}")
        return number

    many = 300
    for number in range(many):
        # Half of them have ids that are none, all of them name callers that nobody is.
        task = Identity(
            "odd", f"k{number}" if number % 2 else f"no id.at*all>{number}".replace("*", "~").replace(">", "~")
        )
        envelope = Task(lineage=("-", f"made-up-{number}")) if number % 5 else Task(lineage=(f"not a name {number}",))
        headers = {names.TASK: wire.encode(envelope).decode()}
        await mesh.bus.store(mesh.bus.subjects.task(task).replace(" ", "_"), str(number).encode(), headers)
        if number < 2 * UNSERVED_MAX:
            await mesh.bus.store(mesh.bus.subjects.task(Identity(f"nobody-{number}", "k")), b"1")
    async with hosting(agent, settings=surveyed(settings)) as peer:
        counted = peer.host.metrics.of("odd", peer.intakes[0].capability.decided_by)
        await eventually(lambda: sum(count.value for count in counted.tasks.values()) == many, within_s=LONG_S)
        for number in range(many):
            counted.decided(f"choice {number}", 0.1)
        await eventually(lambda: value(peer, "mesh_unserved_tasks", capability=OTHERS) == UNSERVED_MAX)
        found = samples(await scrape(peer))

    def distinct(name: str, label: str) -> int:
        return len({sample.labels[label] for sample in found if sample.name == name})

    assert distinct("mesh_calls_total", "caller") <= CALLERS_MAX + 1
    assert distinct("mesh_decisions_total", "choice") == CHOICES_MAX + 1
    assert distinct("mesh_digest_info", "digest") <= 10
    assert distinct("mesh_unserved_tasks", "capability") == UNSERVED_MAX + 1
    assert distinct("mesh_dead_letters_total", "reason") == len(FailureKind)
    assert len(found) < 800
