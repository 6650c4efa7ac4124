"""The slots of one capability on one peer, and who holds one."""

import asyncio
from collections.abc import Callable


class Slots:
    """A number of slots. `in_use` counts those that are held or stood in line for; `on_free` hears of each return."""

    def __init__(self, count: int, *, on_free: Callable[[], None]) -> None:
        self.count = count
        self.in_use = 0
        self._room = asyncio.Semaphore(count)
        self._on_free = on_free

    def line_up(self) -> None:
        self.in_use += 1

    async def take(self) -> None:
        await self._room.acquire()

    def give(self) -> None:
        self._room.release()

    def leave(self) -> None:
        self.in_use -= 1
        self._on_free()


class Slot:
    """One task's claim on a slot. It stands in line from the start; `take` waits for its turn."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._is_counted = True
        self.is_held = False
        slots.line_up()

    async def take(self) -> None:
        """Hold a slot; those who asked earlier have theirs first. Cancelled, none is held."""
        if not self._is_counted:
            self._is_counted = True
            self._slots.line_up()
        await self._slots.take()
        self.is_held = True

    def give(self) -> None:
        """Hold none. Safe to repeat."""
        if self.is_held:
            self.is_held = False
            self._slots.give()
        if self._is_counted:
            self._is_counted = False
            self._slots.leave()
