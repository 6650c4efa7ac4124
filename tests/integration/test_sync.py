"""The blocking client: the same promises from a script, a thread or a notebook."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from mesh import Agent, Context, DeadlineExceeded, IdempotencyConflict, Permanent, TaskCancelled, TaskFailed, sync
from mesh.errors import BusUnavailable
from mesh.settings import Settings
from mesh.streaming import Part
from mesh.testing import eventually, hosting
from mesh.whereabouts import Where

agent = Agent("clerk", version="1")
has_begun = asyncio.Event()


class Word(msgspec.Struct):
    text: str


@agent.handles("shout")
async def shout(word: Word) -> Word:
    if word.text == "bad":
        raise Permanent("not that one")
    return Word(word.text.upper())


@agent.handles("spell")
async def spell(text: str, ctx: Context) -> int:
    for letter in text:
        await ctx.emit(letter)
    return len(text)


@agent.handles("stay")
async def stay(_: str, ctx: Context) -> None:
    has_begun.set()
    await asyncio.Event().wait()


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[Settings]:
    has_begun.clear()
    async with hosting(agent, settings=settings):
        yield settings


async def test_a_task_is_submitted_and_its_typed_value_read(desk: Settings) -> None:
    def script() -> tuple[Word, bool]:
        with sync.connect(settings=desk) as mesh:
            handle = mesh.submit(shout, Word("hi"), key="k1")
            by_name = mesh.submit("shout", Word("hi"), key="k1", returns=Word)
            assert by_name.result() == mesh.handle(shout, "k1").result()
            return handle.result(within_s=10), by_name.is_new

    assert await asyncio.to_thread(script) == (Word("HI"), False)


async def test_a_large_payload_and_value_pass(desk: Settings) -> None:
    def script() -> int:
        with sync.connect(settings=desk) as mesh:
            return len(mesh.submit(shout, Word("hi" * 200_000)).result(within_s=20).text)

    assert await asyncio.to_thread(script) == 400_000


async def test_a_task_is_put_into_a_line(desk: Settings) -> None:
    def script() -> list[str]:
        with sync.connect(settings=desk) as mesh:
            handles = [mesh.submit(shout, Word("hi"), order_key="a") for _ in range(2)]
            assert [handle.result(within_s=10) for handle in handles] == [Word("HI")] * 2
            return [handle.id for handle in handles]

    assert await asyncio.to_thread(script) == ["a.~~1", "a.~~2"]


async def test_it_works_while_another_loop_runs_in_the_thread(desk: Settings) -> None:
    # As in a notebook's cell: this thread's loop runs, and hosts the peer in its pauses.
    with sync.connect(settings=desk) as mesh:
        handle = mesh.submit(shout, Word("hi"))
        await eventually(lambda: handle.status().where is Where.DONE)

        assert handle.result(within_s=1) == Word("HI")


async def test_map_yields_values_and_failures(desk: Settings) -> None:
    def script() -> list[str]:
        with sync.connect(settings=desk) as mesh:
            words = [Word("a"), Word("bad"), Word("c")]
            mapped = list(mesh.map(shout, words, ordered=True, in_flight=2))
            assert [one.index for one in mapped] == [0, 1, 2]
            return [one.value.text if one.value else str(one.error) for one in mapped]

    first, failed, last = await asyncio.to_thread(script)

    assert (first, last) == ("A", "C")
    assert "not that one" in failed


async def test_payloads_may_be_made_with_the_same_client(desk: Settings) -> None:
    def script() -> set[str]:
        with sync.connect(settings=desk) as mesh:

            def words() -> Iterator[Word]:
                for text in "abc":
                    yield mesh.submit(shout, Word(text)).result()

            return {one.unwrap().text for one in mesh.map(shout, words())}

    assert await asyncio.to_thread(script) == {"A", "B", "C"}


async def test_a_map_that_is_left_early_leaves_the_client_usable(desk: Settings) -> None:
    def script() -> Word:
        with sync.connect(settings=desk) as mesh:
            for _ in mesh.map(shout, (Word(str(n)) for n in range(1_000_000)), in_flight=4):
                break
            return mesh.submit(shout, Word("after")).result(within_s=10)

    assert await asyncio.to_thread(script) == Word("AFTER")


async def test_too_few_keys_are_told(desk: Settings) -> None:
    def script() -> None:
        with sync.connect(settings=desk) as mesh:
            list(mesh.map(shout, [Word("a"), Word("b")], keys=["k1"]))

    with pytest.raises(ValueError, match="fewer keys"):
        await asyncio.to_thread(script)


async def test_parts_stream_to_a_plain_loop(desk: Settings) -> None:
    def script() -> list[str]:
        with sync.connect(settings=desk) as mesh:
            return [part.value for part in mesh.submit(spell, "abc").stream() if isinstance(part, Part)]

    assert await asyncio.to_thread(script) == ["a", "b", "c"]


async def test_errors_are_those_of_the_async_client(desk: Settings) -> None:
    def script() -> None:
        with sync.connect(settings=desk) as mesh:
            with pytest.raises(TaskFailed, match="not that one"):
                mesh.submit(shout, Word("bad"), key="k1").result(within_s=10)
            with pytest.raises(IdempotencyConflict):
                mesh.submit(shout, Word("other"), key="k1")

    await asyncio.to_thread(script)


async def test_a_running_task_is_seen_and_cancelled(desk: Settings) -> None:
    def script(mesh: sync.Mesh) -> None:
        handle = mesh.submit(stay, "here")
        with pytest.raises(DeadlineExceeded):
            handle.result(within_s=0.05)
        while handle.status().where is not Where.RUNNING:
            continue
        mesh.cancel(handle.task.capability, handle.id, reason="enough")
        with pytest.raises(TaskCancelled):
            handle.result(within_s=10)
        assert handle.outcome().status == "cancelled"

    def connected() -> None:
        with sync.connect(settings=desk) as mesh:
            script(mesh)

    await asyncio.to_thread(connected)


async def test_a_closed_client_says_so(settings: Settings) -> None:
    def script() -> None:
        with sync.connect(settings=settings) as mesh:
            pass
        with pytest.raises(BusUnavailable, match="closed"):
            mesh.status("shout", "k1")

    await asyncio.to_thread(script)


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    nowhere = Settings(nats_url="nats://127.0.0.1:1", connect_within_s=0.5)

    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"), sync.connect(settings=nowhere):
        pass
