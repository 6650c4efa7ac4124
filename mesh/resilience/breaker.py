"""A circuit breaker: a machine that lets calls through, holds them back, or lets one try. Pure: it is told the time.

Rules.
- *Closed*: every call passes. What the last calls came to is kept, at most `window_calls` of them and none older than
  `window_s`. When at least `calls_min` are known and the share of failed ones reaches `failure_ratio`, or that of slow
  ones `slow_ratio`, it opens. It also opens when the last `calls_min` all failed, however many went
  well before. A call is slow from the moment it has taken `slow_s`, ended or not.
- *Open*: no call passes for `open_s`. What calls come to that began before is not counted.
- *Half open*: when that time is over, whoever wants to call asks for the lease, and with it lets at most `probes` calls
  pass at once, until `probes` of them went well: then it is closed, with nothing remembered. One that fails or is slow
  opens it again. A lease that brings no answer within `lease_s` is free again.
- All peers hear of each change. What another peer decided counts as decided here: its opening opens, its lease keeps
  this peer out until the lease is over, its closing closes.
- A peer that cannot reach the others gets its lease from itself: it goes by its own calls until it hears of them.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from mesh.errors import SetupError


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True)
class Rules:
    """When a breaker opens, and for how long. Times in seconds, ratios from 0 to 1.

    Raises:
        SetupError: a value is outside its limits.
    """

    window_s: float = 10.0
    """How far back calls count."""
    window_calls: int = 100
    """How many of the last calls count."""
    calls_min: int = 10
    """Fewer calls than this prove nothing."""
    failure_ratio: float = 0.5
    slow_s: float | None = None
    """From when on a call is slow; None: no call is."""
    slow_ratio: float = 0.8
    open_s: float = 2.0
    """From opening to the next probe. The whole fleet probes once in this time."""
    probes: int = 1
    lease_s: float = 10.0
    """How long the peer that probes may take, before another one may."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("window_s", self.window_s, 0.01, 3_600),
            ("window_calls", self.window_calls, 1, 100_000),
            ("calls_min", self.calls_min, 1, self.window_calls),
            ("failure_ratio", self.failure_ratio, 0.001, 1),
            ("slow_s", 1.0 if self.slow_s is None else self.slow_s, 0.001, 86_400),
            ("slow_ratio", self.slow_ratio, 0.001, 1),
            ("open_s", self.open_s, 0.01, 86_400),
            ("probes", self.probes, 1, 1_000),
            ("lease_s", self.lease_s, 0.1, 86_400),
        ):
            if not least <= value <= most:
                raise SetupError(f"a breaker's {name} is {value:g}, outside {least:g} to {most:g}")


@dataclass(frozen=True, slots=True)
class Pass:
    """A call may be made; what it comes to is told to `ended`, or `abandoned` if that tells nothing."""

    number: int
    era: int
    began_at: float
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """No call may be made for so long."""

    retry_after_s: float


class LeaseDue:
    """A call may be made with the lease, which has to be asked for first."""


class How(StrEnum):
    """What a call came to."""

    OK = "ok"
    FAILED = "failed"
    SLOW = "slow"


AGAIN_S = 0.1
"""Where a probe is under way: how long the others wait at least."""


class Breaker:
    """One breaker as one peer sees it."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.state = State.CLOSED
        self.due_at = 0.0
        """Open: from when on it may be probed. Half open: until when the lease stands."""
        self._calls: deque[tuple[float, How]] = deque(maxlen=self.rules.window_calls)
        self._running: dict[int, Pass] = {}
        self._numbers = itertools.count()
        self.era = 0
        """Counts changes of state: what a call of an earlier one comes to says nothing any more."""
        self._went_well = 0

    # Calls.

    def admit(self, now: float) -> Pass | Refused | LeaseDue:
        """Whether a call may be made now."""
        if self.state is State.CLOSED:
            return self._begin(now, is_probe=False)
        if now >= self.due_at:
            return LeaseDue()
        if self.state is State.HALF_OPEN and self.probes_left > 0:
            return self._begin(now, is_probe=True)
        return Refused(max(AGAIN_S, self.due_at - now) if self.state is State.OPEN else AGAIN_S)

    def ended(self, call: Pass, now: float, *, is_failure: bool) -> State | None:
        """Count what a call came to. The new state, where that changes it: others should hear of it."""
        self._running.pop(call.number, None)
        how = self.how(call, now, is_failure=is_failure)
        if call.era != self.era:
            return None
        if self.state is State.CLOSED:
            self._calls.append((now, how))
            return self._open(now) if self._has_tripped(now) else None
        if how is not How.OK:
            return self._open(now)
        self._went_well += 1
        if self._went_well < self.rules.probes:
            return None
        self._change(State.CLOSED, 0.0)
        return self.state

    def abandoned(self, call: Pass) -> None:
        """Forget a call that was given up for reasons of its caller."""
        self._running.pop(call.number, None)

    def how(self, call: Pass, now: float, *, is_failure: bool) -> How:
        """What a call that ends now came to."""
        if is_failure:
            return How.FAILED
        slow_s = self.rules.slow_s
        return How.SLOW if slow_s is not None and now - call.began_at >= slow_s else How.OK

    def look(self, now: float) -> State | None:
        """Open where calls under way have become slow. The new state, where that changes it."""
        return self._open(now) if self.state is State.CLOSED and self._has_tripped(now) else None

    @property
    def probes_left(self) -> int:
        """How many more calls the lease lets pass at once."""
        if self.state is not State.HALF_OPEN:
            return 0
        probing = sum(call.is_probe and call.era == self.era for call in self._running.values())
        return self.rules.probes - self._went_well - probing

    # What is decided elsewhere.

    def leased(self, until: float) -> None:
        """Let probes pass until then: the lease is this peer's."""
        self._change(State.HALF_OPEN, until)

    def heard(self, state: State, until: float) -> None:
        """Take over what another peer decided. A lease of another one is as good as being open."""
        if state is State.CLOSED:
            if self.state is not State.CLOSED:
                self._change(State.CLOSED, 0.0)
        else:
            self._change(State.OPEN, until)

    # Inside.

    def _begin(self, now: float, *, is_probe: bool) -> Pass:
        call = Pass(next(self._numbers), self.era, now, is_probe)
        self._running[call.number] = call
        return call

    def _has_tripped(self, now: float) -> bool:
        rules = self.rules
        while self._calls and self._calls[0][0] <= now - rules.window_s:
            self._calls.popleft()
        known = [how for _, how in self._calls]
        known += [How.SLOW] * self._slow_under_way(now)
        if len(known) < rules.calls_min:
            return False
        if all(how is How.FAILED for how in known[-rules.calls_min :]):
            return True
        failed = known.count(How.FAILED)
        # A failed call may have been slow, too: it counts as failed.
        return failed >= rules.failure_ratio * len(known) or (
            rules.slow_s is not None and known.count(How.SLOW) >= rules.slow_ratio * len(known)
        )

    def _slow_under_way(self, now: float) -> int:
        slow_s = self.rules.slow_s
        if slow_s is None:
            return 0
        return sum(now - call.began_at >= slow_s for call in self._current())

    def _current(self) -> Iterator[Pass]:
        return (call for call in self._running.values() if call.era == self.era)

    def _open(self, now: float) -> State:
        self._change(State.OPEN, now + self.rules.open_s)
        return self.state

    def _change(self, state: State, due_at: float) -> None:
        self.state = state
        self.due_at = due_at
        self._calls.clear()
        self._went_well = 0
        self.era += 1
