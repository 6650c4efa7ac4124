"""The door to JetStream: topology that is never changed silently, guarded submits, pulls that survive."""

import asyncio
import time
from pathlib import Path

import pytest

from contracts.subjects import Identity
from contracts.task import Task
from mesh import Agent, Mesh
from mesh.bus import plan, topology
from mesh.bus.commit import commit, create_once
from mesh.bus.connection import Bus
from mesh.bus.pull import Delivery, Pull
from mesh.bus.submit import Submitter
from mesh.errors import BusUnavailable, PublishRejected, SequenceConflict, SetupError, TopologyDrift
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings

TASK = Identity("bill", "order-42")


async def test_ensure_creates_once_and_is_safe_to_race(settings: Settings) -> None:
    async with Bus.connect(settings, "one") as one, Bus.connect(settings, "two") as two:
        specs = [*topology.streams(settings), topology.consumer(settings, "bill")]

        first, second = await asyncio.gather(topology.ensure(one, specs), topology.ensure(two, specs))
        third = await topology.ensure(one, specs)

    assert {*first.created, *second.created} == {str(spec) for spec in specs}
    assert third == topology.Ensured()


async def test_an_essential_difference_is_refused_and_told(mesh: Mesh, settings: Settings) -> None:
    stream = settings.subjects.stream
    config = (await mesh.bus.api(f"STREAM.INFO.{stream}"))["config"]
    await mesh.bus.api(f"STREAM.UPDATE.{stream}", {**config, "allow_direct": False})

    with pytest.raises(TopologyDrift, match=f"{stream}: allow_direct is False, wanted True"):
        await topology.ensure(mesh.bus, topology.of_mesh(settings))

    assert not (await mesh.bus.api(f"STREAM.INFO.{stream}"))["config"].get("allow_direct")


async def test_a_tunable_difference_is_told_and_kept(mesh: Mesh, settings: Settings) -> None:
    wider = settings.model_copy(update={"stream_bytes_max": 2 * settings.stream_bytes_max})

    ensured = await topology.ensure(mesh.bus, topology.of_mesh(wider))

    (difference,) = ensured.tolerated
    assert (difference.field, difference.actual) == ("max_bytes", settings.stream_bytes_max)


async def test_an_operator_changes_the_server_and_nothing_else_of_it(mesh: Mesh, settings: Settings) -> None:
    wider = settings.model_copy(update={"stream_bytes_max": 2 * settings.stream_bytes_max, "ack_wait_s": 3.0})
    await topology.ensure(mesh.bus, [topology.consumer(settings, "bill")])
    specs = [*topology.streams(wider), topology.consumer(wider, "bill")]

    done = await plan.carry_out(mesh.bus, specs)

    assert [(step.what.partition(": ")[0], step.is_done) for step in done] == [
        (f"changed {settings.subjects.stream}", True),
        (f"changed {settings.subjects.stream} > bill", True),
    ]
    assert await topology.ensure(mesh.bus, specs) == topology.Ensured()
    info = await topology.inspect(mesh.bus, specs[-1])
    assert info is not None
    assert info["config"]["priority_policy"] == "overflow"


async def test_a_server_without_room_is_told_as_such(mesh: Mesh, settings: Settings) -> None:
    huge = fresh_settings(str(settings.nats_url)).model_copy(update={"stream_bytes_max": 2**60})

    with pytest.raises(SetupError, match="refuses to make stream"):
        await topology.ensure(mesh.bus, topology.of_mesh(huge))


async def test_a_submit_is_refused_in_every_state_of_the_task(mesh: Mesh) -> None:
    subjects = mesh.bus.subjects
    for subject in (subjects.result(TASK), subjects.task(TASK, "urgent"), subjects.park(TASK)):
        identity = Identity("bill", subject.split(".")[1].replace("@", "-"))
        await mesh.bus.store(subject.replace("order-42", identity.id), b"{}")

        receipt = await Submitter(mesh.bus).submit(identity, b"{}", Task(), give_up_at=time.time() + 5)

        assert not receipt.is_new


async def test_a_submit_whose_answer_was_lost_is_repeated_as_it_is(mesh: Mesh) -> None:
    submitter = Submitter(mesh.bus)
    first = await submitter.submit(TASK, b"{}", Task(), give_up_at=time.time() + 5)

    again = await submitter.submit(TASK, b"{}", Task(), give_up_at=time.time() + 5)

    assert again.sequence == first.sequence
    assert again.existing is not None


async def test_of_two_commits_one_is_written_and_the_other_reads_it(mesh: Mesh) -> None:
    written = await commit(mesh.bus, TASK, b'{"status":"done"}', ttl_s=60, as_type="application/json")
    refused = await commit(mesh.bus, TASK, b'{"status":"failed"}', ttl_s=60, as_type="application/json")

    assert written is None
    assert refused is not None
    assert refused.data == b'{"status":"done"}'


async def test_the_servers_no_is_told_apart_from_its_silence(mesh: Mesh) -> None:
    subject = mesh.bus.subjects.result(TASK)
    await create_once(mesh.bus, subject, b"{}", {})

    with pytest.raises(SequenceConflict):
        await mesh.bus.store(subject, b"{}", {"Nats-Expected-Last-Subject-Sequence": "0"})
    with pytest.raises(BusUnavailable, match="no stream takes"):
        await mesh.bus.store("nobody.listens.here", b"{}")
    with pytest.raises(PublishRejected, match="10165"):
        await mesh.bus.store(mesh.bus.subjects.result(Identity("bill", "other")), b"{}", {"Nats-TTL": "1ms"})


async def test_a_pull_is_passed_over_until_as_many_wait_as_it_bids(mesh: Mesh, settings: Settings) -> None:
    await topology.ensure(mesh.bus, [topology.consumer(settings, "bill")])
    got: list[str] = []

    def pull(name: str) -> Pull:
        bill = topology.consumer(settings, "bill")
        return Pull(mesh.bus, bill, on_delivery=lambda _: got.append(name), on_room=lambda: None, on_lost=lambda: None)

    slow, fast = pull("slow"), pull("fast")
    async with slow.open(), fast.open():
        await slow.offer(2, 3)
        await fast.offer(1)
        await eventually(lambda: waiting_pulls(mesh, 2))
        for number in range(3):
            await mesh.bus.store(mesh.bus.subjects.task(Identity("bill", f"k{number}")), b"{}")
        await eventually(lambda: got)
        assert await queue_of(mesh) == (2, 1)
        await mesh.bus.store(mesh.bus.subjects.task(Identity("bill", "k3")), b"{}")
        await eventually(lambda: len(got) == 2)
        assert await queue_of(mesh) == (2, 1)

    assert got == ["fast", "slow"]


async def test_an_offer_that_is_passed_over_ends_and_a_look_does_not_wait(mesh: Mesh, settings: Settings) -> None:
    await topology.ensure(mesh.bus, [topology.consumer(settings, "bill")])
    got: list[Delivery] = []
    heard: list[str] = []
    pull = Pull(
        mesh.bus,
        topology.consumer(settings, "bill"),
        on_delivery=got.append,
        on_room=lambda: heard.append("room"),
        on_empty=lambda: heard.append("empty"),
        on_lost=lambda: heard.append("lost"),
    )
    async with pull.open():
        await pull.take()
        await eventually(lambda: heard == ["empty"])
        await mesh.bus.store(mesh.bus.subjects.task(TASK), b"{}")
        await pull.offer(3, 2, for_s=0.3)
        assert pull.offered == 3
        await eventually(lambda: heard == ["empty", "room"])
        assert (got, pull.offered) == ([], 0)
        await pull.take()
        await eventually(lambda: got)

    assert (pull.served, pull.offered, heard) == (1, 0, ["empty", "room"])


async def queue_of(mesh: Mesh) -> tuple[int, int]:
    """How many tasks wait, and how many pulls."""
    info = await mesh.bus.api(f"CONSUMER.INFO.{mesh.bus.subjects.stream}.bill")
    return info["num_pending"], info["num_waiting"]


async def waiting_pulls(mesh: Mesh, count: int) -> bool:
    info = await mesh.bus.api(f"CONSUMER.INFO.{mesh.bus.subjects.stream}.bill")
    return bool(info["num_waiting"] == count)


async def test_a_pull_that_was_withdrawn_leaves_the_message_to_others(mesh: Mesh, settings: Settings) -> None:
    await topology.ensure(mesh.bus, [topology.consumer(settings, "bill")])
    got: list[Delivery] = []
    bill = topology.consumer(settings, "bill")
    pull = Pull(mesh.bus, bill, on_delivery=got.append, on_room=lambda: None, on_lost=lambda: None)
    async with pull.open():
        await pull.offer(3)
        await pull.withdraw()
        sequence = await mesh.bus.store(mesh.bus.subjects.task(TASK), b"{}")
        await pull.resume()
        await pull.offer(1)
        await eventually(lambda: got)

    assert [(delivery.sequence, delivery.delivered, delivery.pending) for delivery in got] == [(sequence, 1, 0)]


async def test_an_inbox_replaced_from_two_sides_at_once_keeps_its_account(mesh: Mesh, settings: Settings) -> None:
    await topology.ensure(mesh.bus, [topology.consumer(settings, "bill")])
    got: list[Delivery] = []
    bill = topology.consumer(settings, "bill")
    pull = Pull(mesh.bus, bill, on_delivery=got.append, on_room=lambda: None, on_lost=lambda: None)
    before = len(mesh.bus.nc._subs)
    async with pull.open():
        await asyncio.gather(pull.withdraw(), pull.resume(), pull.withdraw(), pull.resume(), pull.resume())
        subscriptions = len(mesh.bus.nc._subs) - before
        await pull.offer(1)
        await mesh.bus.store(mesh.bus.subjects.task(TASK), b"{}")
        await eventually(lambda: got)

        assert (subscriptions, pull.offered) == (1, 0)


async def test_a_deleted_consumer_is_made_anew_and_work_goes_on(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("echo")

    @agent.handles("echo")
    async def echo(text: str) -> str:
        return text

    async with hosting(agent, settings=settings) as peer:
        assert await (await mesh.submit(echo, "one")).result(within_s=10) == "one"

        await mesh.bus.api(f"CONSUMER.DELETE.{mesh.bus.subjects.stream}.echo")

        assert await (await mesh.submit(echo, "two")).result(within_s=40) == "two"
        await eventually(lambda: peer.host.trusted_above < 2**63)


async def test_work_goes_on_after_the_broker_was_killed(tmp_path: Path) -> None:
    agent = Agent("echo")

    @agent.handles("echo")
    async def echo(text: str) -> str:
        return text

    with local_server(tmp_path) as server:
        settings = fresh_settings(server.url)
        async with hosting(agent, settings=settings) as peer, Mesh.connect(settings=settings) as mesh:
            assert await (await mesh.submit(echo, "one")).result(within_s=10) == "one"
            waiting = asyncio.ensure_future((await mesh.submit("nobody", "yet", key="k")).result(within_s=60))

            server.kill()
            await eventually(lambda: not peer.is_ready()[0])
            submitting = asyncio.ensure_future(mesh.submit(echo, "two"))
            server.restart()

            assert await (await submitting).result(within_s=30) == "two"
            await eventually(lambda: peer.is_ready()[0])
            other = Agent("late")

            @other.handles("nobody")
            async def nobody(text: str) -> str:
                return f"{text}: served"

            async with hosting(other, settings=settings):
                assert await waiting == "yet: served"


async def test_a_server_that_is_not_there_is_told_in_time(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"nats_url": "nats://user:hidden@127.0.0.1:1", "connect_within_s": 0.5})

    with pytest.raises(BusUnavailable, match=r"no NATS server at nats://127\.0\.0\.1:1 within 0\.5 s") as caught:
        async with Mesh.connect(settings=nowhere):
            pass

    assert "hidden" not in str(caught.value)
