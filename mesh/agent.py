"""The author's side: an agent is a named set of handlers."""

from collections.abc import Callable, Coroutine, Iterable
from functools import cached_property, partial
from typing import Any, Concatenate, Protocol, TypeVar, overload

from faststream import FastStream
from tenacity.wait import wait_base

from contracts.card import check_owner
from contracts.errors import ContractError
from contracts.limit import BURST_S, Limit, check_limit
from contracts.subjects import check_breaker_name, check_capability, check_resource
from mesh.capability import AgentInfo, Capability, Limits, calls_of
from mesh.endings import Escalate, Handoff, Ladder, Verifiers
from mesh.errors import SetupError
from mesh.peer import Hosted, Peer
from mesh.reference import Reference
from mesh.resilience.breaker import Rules as BreakerRules
from mesh.resilience.classify import Rules
from mesh.resilience.retry import DEFAULT_WAIT
from mesh.settings import Settings
from mesh.telemetry import logs

I = TypeVar("I")  # noqa: E741  # the pair reads as input and output
O = TypeVar("O")  # noqa: E741


class Handles(Protocol):
    """A decorator that keeps the handler's types."""

    @overload
    def __call__(
        self, handler: Callable[[], Coroutine[Any, Any, O | Handoff | Escalate]]
    ) -> Capability[None, O, Coroutine[Any, Any, O]]: ...
    @overload
    def __call__(
        self, handler: Callable[Concatenate[I, ...], Coroutine[Any, Any, O | Handoff | Escalate]]
    ) -> Capability[I, O, Coroutine[Any, Any, O]]: ...
    @overload
    def __call__(self, handler: Callable[[], O]) -> Capability[None, O, O]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[I, ...], O]) -> Capability[I, O, O]: ...


class Agent:
    """A named set of handlers, owned by a team.

    `calls` names what its handlers ask of others, as capabilities or their names: called, sent to, handed over to;
    `human` where people are asked. Rungs of ladders and verifiers are known without. What a peer may ask for is made
    of it (docs/security.md).

    Raises:
        SetupError: the name is empty, the owner cannot be a label, or a call names no capability.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0",
        owner: str = "",
        role: str = "",
        description: str = "",
        calls: Iterable[Reference[Any, Any] | str] = (),
    ) -> None:
        if not name:
            raise SetupError("an agent needs a name")
        if isinstance(calls, str):
            raise SetupError(f"agent {name!r}: calls is a string; give a list of names: calls=[{calls!r}]")
        try:
            check_owner(owner)
            called = tuple(check_capability(_name_of(each)) for each in calls)
        except ContractError as error:
            raise SetupError(f"agent {name!r}: {error}") from error
        self.info = AgentInfo(name, version, owner, role, description, calls=called)
        self.capabilities: dict[str, Capability[Any, Any, Any]] = {}

    def handles(
        self,
        capability: str,
        *,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        attempts: int = 3,
        result_ttl_s: float | None = None,
        wait: wait_base = DEFAULT_WAIT,
        permanent: tuple[type[Exception], ...] = (),
        transient: tuple[type[Exception], ...] = (),
        throttled_for_s: float = 3_600.0,
        queue_max: int | None = None,
        ladder: Ladder | None = None,
        verified_by: Verifiers | None = None,
        payload_class: Callable[[Any], str] | None = None,
    ) -> Handles:
        """Declare a handler: one payload, and a `Context` if it wants one; types come from its annotations.

        `concurrency` tasks run at once on each peer. An attempt that takes longer than `timeout_s` seconds has
        failed. A task is attempted at most `attempts` times, crashes counted and clean hand-backs not, with
        tenacity's `wait` in between. Results are kept, and their keys remembered, for `result_ttl_s` seconds.
        Time spent waiting for others counts for no timeout.

        Exceptions of the types in `permanent` fail the task at once, those in `transient` are tried again; what is
        named in neither is judged by what it is (docs/retries.md). A task that a callee throttles is tried again when
        the callee says, which costs no attempt, for at most `throttled_for_s` seconds of waiting in all.

        In each lane `queue_max` tasks may wait for a peer; then clients' submissions are `Overloaded`. Without it
        MESH_QUEUE_MAX is the bound.

        With a `ladder` answers below its threshold go to its next rung instead; with `verified_by` an answer
        stands only when enough verifiers agree, and goes to the ladder's next rung, or fails, if they do not.

        Where some payloads take far longer than others, `payload_class` names each one's class (eight are told
        apart): a peer that was handed the large ones is then not taken for a slow one.

        Raises:
            SetupError: the name, a limit or the handler's signature cannot work.
        """

        def declare(handler: Callable[..., Any]) -> Any:
            limits = Limits(concurrency, timeout_s, attempts, result_ttl_s, wait, throttled_for_s, queue_max)
            if capability in self.capabilities:
                raise SetupError(f"{capability!r} is handled twice by agent {self.info.name!r}")
            declared = Capability[Any, Any, Any](
                capability,
                handler,
                self.info,
                limits,
                ladder=ladder,
                verified_by=verified_by,
                payload_class=payload_class,
                rules=Rules(permanent, transient),
            )
            self.capabilities[capability] = declared
            return declared

        return declare

    def breaker(
        self,
        name: str,
        *,
        window_s: float = BreakerRules.window_s,
        window_calls: int = BreakerRules.window_calls,
        calls_min: int = BreakerRules.calls_min,
        failure_ratio: float = BreakerRules.failure_ratio,
        slow_s: float | None = BreakerRules.slow_s,
        slow_ratio: float = BreakerRules.slow_ratio,
        open_s: float = BreakerRules.open_s,
        probes: int = BreakerRules.probes,
        lease_s: float = BreakerRules.lease_s,
    ) -> str:
        """Set when the circuit breaker `name` opens, for handlers that use it; the name itself, for `ctx.breaker`.

        Of the last `window_calls` calls, none older than `window_s` seconds, at least `calls_min` have to be known;
        then it opens where a share of `failure_ratio` failed, or the last `calls_min` did, or a share of `slow_ratio`
        took `slow_s` or longer. It lets no call pass for `open_s`; then one peer of the mesh has `lease_s` to make
        `probes` calls, all of which must go well. Each peer counts its own calls, and the first one that opens it
        opens it for all. Without rules the ones shown here hold.

        Raises:
            SetupError: the name or a rule is outside its limits, or the breaker has rules already.
        """
        try:
            check_breaker_name(name)
        except ContractError as error:
            raise SetupError(str(error)) from error
        if name in self.info.breakers:
            raise SetupError(f"breaker {name!r} has its rules twice in agent {self.info.name!r}")
        self.info.breakers[name] = BreakerRules(
            window_s, window_calls, calls_min, failure_ratio, slow_s, slow_ratio, open_s, probes, lease_s
        )
        return name

    def limit(
        self,
        resource: str,
        *,
        concurrent: int | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_s: float = BURST_S,
    ) -> None:
        """Say how much of a resource all peers of the mesh together may use; what an operator sets wins.

        It bounds what handlers do inside `ctx.limit(resource)`. What is left out is not limited. An idle bucket
        holds `burst_s` seconds' worth of its rate, so one call can ask for no more tokens than that.

        Raises:
            SetupError: the name or a number is illegal, or the resource has another limit already.
        """
        limit = Limit(
            concurrent=concurrent,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            burst_s=burst_s,
        )
        try:
            check_resource(resource)
            check_limit(limit)
        except ContractError as error:
            raise SetupError(f"limit {resource!r}: {error}") from error
        if self.info.limits.setdefault(resource, limit) != limit:
            raise SetupError(f"agent {self.info.name!r} limits {resource!r} twice")

    @property
    def hosted(self) -> Hosted:
        """This agent as a peer hosts it."""
        return self.info, tuple(self.capabilities.values())

    @cached_property
    def app(self) -> FastStream:
        """A FastStream application that hosts this agent alone: `faststream run module:agent.app`.

        Raises:
            SetupError: MESH_NATS_URL is not set, or the agent handles nothing.
        """
        settings = Settings()
        app = Peer(self.hosted, settings=settings).app
        # When it is started, not when its module is imported.
        app.on_startup(partial(logs.set_up, settings))
        return app

    @property
    def calls(self) -> tuple[str, ...]:
        """The capabilities that its handlers ask: those it declares, its ladders' next rungs, its verifiers."""
        return calls_of(self.info, self.capabilities.values())

    def __repr__(self) -> str:
        return f"Agent({self.info.name!r}, {sorted(self.capabilities)})"


def _name_of(called: Reference[Any, Any] | str) -> str:
    return called.name if isinstance(called, Reference) else called
