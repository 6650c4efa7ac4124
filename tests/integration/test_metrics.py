"""What live peers export: everything that the catalogue has, nothing else, and no more of it for more tasks."""

import asyncio
import threading
import time
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
from contracts.workflow import Answer, Check, Claim, Proposal, Verdict
from mesh import Agent, Context, Escalate, Handoff, Ladder, Mesh, TaskCancelled, TaskFailed, Verifiers
from mesh.endings import HUMAN
from mesh.errors import Permanent, Throttled, Transient
from mesh.human import agent as people
from mesh.inbox import give, read_inbox
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.telemetry.catalogue import CALLERS_MAX, CATALOGUE, CHOICES_MAX, OTHERS, UNSERVED_MAX
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings
from mesh.verbs import ANSWER

LONG_S = 40.0
SURVEY_S = 0.2
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


async def scrape(peer: Peer, accept: str = OPENMETRICS, *, page: str = "metrics") -> str:
    request = urllib.request.Request(f"{peer.metrics_url}/{page}", headers={"Accept": accept})

    def fetch() -> str:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(fetch)


def samples(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def series(text: str) -> set[str]:
    return {line.partition("} ")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


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
        plain, open_ = await scrape(peer, ""), await scrape(peer)

    assert TRACE_ID in open_
    assert TRACE_ID not in plain
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
    assert series(plain) <= series(open_)


async def test_ten_thousand_ids_have_no_more_series_than_one(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("echo", version="1")

    @agent.handles("echo", concurrency=200)
    async def echo(text: str) -> str:
        return text

    async with hosting(agent, settings=settings) as peer:
        await (await mesh.submit(echo, "warm", key="warm")).result(within_s=LONG_S)
        await eventually(lambda: value(peer, "mesh_dead_letters_kept", capability="echo") is not None)
        before = {(sample.name, *sorted(sample.labels.items())) for sample in samples(await scrape(peer))}
        todo = iter(range(10_000))

        async def some() -> None:
            for number in todo:
                await (await mesh.submit(echo, "x", key=f"order-{number}")).result(within_s=LONG_S)

        async with asyncio.TaskGroup() as fibers:
            for _ in range(500):
                fibers.create_task(some())
        # Its clients may hear of a result before the peer does.
        await eventually(lambda: not peer.host.running, within_s=LONG_S)
        assert (value(peer, "mesh_tasks_total", capability="echo", version="1", status="done") or 0) > 9_000
        text = await scrape(peer)

    after = {(sample.name, *sorted(sample.labels.items())) for sample in samples(text)}
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


async def test_the_mesh_is_shown_as_it_was_seen_last(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("shop", version="1", owner="sales")
    go_on = asyncio.Event()

    @agent.handles("slow", concurrency=2, queue_max=77)
    async def slow(number: int) -> int:
        await go_on.wait()
        return number

    @agent.handles("waits")
    async def waits(ctx: Context) -> str:
        return await ctx.signal("go", returns=str)

    @agent.handles("fails")
    async def fails() -> None:
        raise Permanent("never")

    async with hosting(agent, people, settings=surveyed(settings)) as peer:
        held = [await mesh.submit(slow, number) for number in range(2)]
        await eventually(lambda: value(peer, "mesh_unacked_tasks", capability="slow", lane="normal") == 2)
        held += [await mesh.submit(slow, number) for number in range(3)]
        held += [await mesh.submit(slow, number, priority="bulk") for number in range(4)]
        waiting = [await mesh.submit(waits, key=f"w{number}") for number in range(5)]
        for _ in range(6):
            await mesh.submit(fails)
        await eventually(lambda: value(peer, "mesh_queue_tasks", capability="slow", lane="normal") == 3)
        await eventually(lambda: value(peer, "mesh_queue_tasks", capability="slow", lane="bulk") == 4)
        await eventually(lambda: value(peer, "mesh_parked_tasks", capability="waits") == 5)
        await eventually(lambda: value(peer, "mesh_dead_letters_kept", capability="fails") == 6)
        assert value(peer, "mesh_queue_max_tasks", capability="slow", lane="urgent") == 77
        assert (value(peer, "mesh_oldest_task_seconds", capability="slow", lane="normal") or 0) > 0
        assert value(peer, "mesh_oldest_task_seconds", capability="slow", lane="bulk") == 0
        assert (value(peer, "mesh_stream_messages", stream=mesh.bus.subjects.stream) or 0) >= 20
        assert (value(peer, "mesh_stream_bytes", stream=mesh.bus.subjects.stream) or 0) > 1_000
        limit = value(peer, "mesh_stream_bytes_max", stream=mesh.bus.subjects.stream)
        assert limit == settings.stream_bytes_max
        assert value(peer, "mesh_stream_bytes_max", stream=mesh.bus.subjects.timer_stream("slow")) is None
        labels = {"capability": "slow", "agent": "shop", "version": "1", "owner": "sales"}
        assert value(peer, "mesh_agent_info", **labels) == 1

        go_on.set()
        for number in range(5):
            await mesh.signal(waits, f"w{number}", "go", "on")
        for handle in (*held, *waiting):
            await handle.result(within_s=LONG_S)
        await eventually(lambda: value(peer, "mesh_queue_tasks", capability="slow", lane="bulk") == 0)
        await eventually(lambda: value(peer, "mesh_unacked_tasks", capability="slow", lane="normal") == 0)


async def test_proposals_show_with_the_age_of_the_oldest(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("shop")

    @agent.handles("ask")
    async def ask(ctx: Context) -> bool:
        return (await ctx.approve("refund", reason="over 100")).is_approved

    queued = await mesh.submit(HUMAN, Proposal(proposal="early"), key="early")
    await mesh.bus.store(mesh.bus.subjects.park(Identity(HUMAN, "odd")), b"{}", {names.PARKED: "1000.0"})
    async with hosting(agent, people, settings=surveyed(settings)) as peer:
        await mesh.submit(ask, key="order")
        await eventually(lambda: value(peer, "mesh_inbox_waiting") == 3)
        assert time.time() - 1_000 - 60 < (value(peer, "mesh_inbox_oldest_seconds") or 0) <= time.time() - 1_000

        for task in ("early", "odd"):
            await mesh.signal(HUMAN, task, ANSWER, Answer(verdict=Verdict.APPROVED, at=1.0))
        await queued.result(within_s=LONG_S)
        await eventually(lambda: value(peer, "mesh_inbox_waiting") == 1)
        assert (value(peer, "mesh_inbox_oldest_seconds") or 0) < 600


async def test_without_a_connection_only_the_age_of_the_last_look_is_shown() -> None:
    with local_server() as server:
        agent = Agent("echo")

        @agent.handles("echo")
        async def echo(text: str) -> str:
            return text

        async with hosting(agent, settings=surveyed(fresh_settings(server.url))) as peer:
            await eventually(lambda: value(peer, "mesh_queue_tasks", capability="echo", lane="normal") == 0)

            server.kill()
            await eventually(lambda: not peer.bus.is_connected)
            away = {sample.name for sample in samples(await scrape(peer))}
            age_s = value(peer, "mesh_survey_age_seconds")
            assert age_s is not None
            await eventually(lambda: (value(peer, "mesh_survey_age_seconds") or 0) > age_s + 2 * SURVEY_S)

            server.restart()
            await eventually(lambda: value(peer, "mesh_queue_tasks", capability="echo", lane="normal") == 0)
            await eventually(lambda: (value(peer, "mesh_survey_age_seconds") or 9) < 2 * SURVEY_S)

    assert "mesh_survey_age_seconds" in away
    assert "mesh_slots" in away
    assert not {name for name in away if name.startswith(("mesh_queue_tasks", "mesh_stream", "mesh_unacked"))}


async def test_time_of_handlers_counts_apart_from_waits(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("workers")

    @agent.handles("busy")
    async def busy() -> None:
        await asyncio.sleep(0.3)

    @agent.handles("blocking")
    def blocking() -> None:
        time.sleep(0.3)  # it runs in a thread

    @agent.handles("parent")
    async def parent(ctx: Context) -> None:
        await ctx.gather(ctx.call(busy), ctx.call(blocking))
        await ctx.sleep(0.3)

    def spent(capability: str, on: str) -> float:
        return value(peer, "mesh_work_seconds_total", capability=capability, spent=on) or 0.0

    async with hosting(agent, settings=settings) as peer:
        await (await mesh.submit(parent)).result(within_s=LONG_S)
        await eventually(lambda: not peer.host.running)

        assert spent("busy", "handler") >= 0.29
        assert spent("blocking", "handler") >= 0.29
        # It waited for 0.6 s and did next to nothing.
        assert spent("parent", "handler") + spent("parent", "mesh") < 0.29
        assert all(spent(capability, "mesh") > 0 for capability in ("busy", "blocking", "parent"))


async def test_an_escalation_and_a_handoff_count_once_however_often_they_are_taken_up(
    mesh: Mesh, settings: Settings
) -> None:
    agent = Agent("desk")

    @agent.handles("specialist")
    async def specialist(number: int, ctx: Context) -> int:
        await ctx.sleep(0.05)
        return number

    @agent.handles("doubts", ladder=Ladder(0.9))
    async def doubts(number: int, ctx: Context) -> int:
        ctx.explain(confidence=0.5)
        return number

    @agent.handles("unsure", ladder=Ladder(0.9, "specialist"), verified_by=Verifiers("no", agree=1))
    async def unsure(number: int) -> int:
        return number

    @agent.handles("no")
    async def no(claim: Claim) -> Check:
        return Check(agrees=False)

    @agent.handles("passes")
    async def passes(number: int) -> int | Handoff:
        return Handoff(specialist, number)

    def counted(what: str, capability: str) -> float:
        return value(peer, f"mesh_{what}_total", capability=capability) or 0.0

    async with hosting(agent, people, settings=surveyed(settings, hot_wait_s=0.0)) as peer:
        doubted = await mesh.submit(doubts, 1, key="doubted")
        await eventually(lambda: value(peer, "mesh_inbox_waiting") == 1)
        assert counted("escalations", "doubts") == 1
        for capability in (passes, unsure):
            assert await (await mesh.submit(capability, 2)).result(within_s=LONG_S) == 2
        (proposal,) = await read_inbox(mesh.bus)
        await give(mesh, proposal, Verdict.APPROVED, by="ann")
        assert await doubted.result(within_s=LONG_S) == 1

        assert [counted("escalations", name) for name in ("doubts", "unsure", "passes")] == [1, 1, 0]
        assert [counted("handoffs", name) for name in ("doubts", "unsure", "passes")] == [0, 0, 1]
        assert counted("parks", "unsure") >= 1


async def test_with_metrics_off_gauges_and_health_stay(mesh: Mesh, settings: Settings) -> None:
    async with hosting(desk(), settings=surveyed(settings, metrics=False)) as peer:
        assert await (await mesh.submit("work", 1)).result(within_s=LONG_S) == 1
        with pytest.raises(TaskFailed):
            await (await mesh.submit("answer", 3)).result(within_s=LONG_S)
        await eventually(lambda: value(peer, "mesh_queue_tasks", capability="answer", lane="normal") == 0)
        found = {family.name: family.type for family in text_string_to_metric_families(await scrape(peer))}
        assert await scrape(peer, page="readyz") == "ready\n"

    assert {name for name, kind in found.items() if kind != "gauge"} == {"mesh_reconnections"}
    assert {"mesh_slots", "mesh_breaker_state", "mesh_agent_info", "mesh_stream_bytes"} <= set(found)


async def test_a_handler_that_blocks_the_loop_holds_up_no_scrape(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("blocker")
    is_blocked, is_scraped = threading.Event(), threading.Event()
    pages: list[str] = []

    @agent.handles("block")
    async def block() -> bool:
        is_blocked.set()
        return is_scraped.wait(30)

    def look(url: str) -> None:
        is_blocked.wait(30)
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
            pages.append(page.read().decode())
        is_scraped.set()

    async with hosting(agent, settings=settings) as peer:
        scraping = threading.Thread(target=look, args=(peer.metrics_url,))
        scraping.start()
        assert await (await mesh.submit(block)).result(within_s=LONG_S) is True
        await asyncio.to_thread(scraping.join)

    assert 'mesh_in_flight_tasks{capability="block"} 1.0' in pages[0].splitlines()
