"""What an agent can be asked for: a handler with its types, limits and rules, and a typed name for callers."""

import functools
import inspect
import logging
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Union

from fast_depends import inject
from fast_depends.dependencies import Dependant
from tenacity.wait import wait_base
from typing_extensions import TypeVar

from contracts.card import AgentCard, CapabilityCard
from contracts.errors import ContractError
from contracts.limit import Limit
from contracts.outcome import DecidedBy
from contracts.subjects import check_capability
from mesh.context import BlockingContext, Context
from mesh.endings import Escalate, Handoff, Ladder, Verifiers
from mesh.errors import SetupError
from mesh.payload import Shape
from mesh.reference import Reference
from mesh.resilience.breaker import Rules as BreakerRules
from mesh.resilience.classify import NO_RULES, Rules
from mesh.resilience.retry import WAIT_S_MAX, wait_s

I = TypeVar("I")  # noqa: E741  # the pair reads as input and output
O = TypeVar("O")  # noqa: E741
Called = TypeVar("Called", default=Any)

log = logging.getLogger("mesh.capability")

CONCURRENCY_MAX = 10_000
CLASS_LENGTH_MAX = 64
ATTEMPTS_MAX = 1_000
QUEUE_MAX = 1_000_000_000
_WHOLE = frozenset({"concurrency", "attempts", "queue_max"})


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """Who offers a capability."""

    name: str
    version: str = ""
    owner: str = ""
    role: str = ""
    description: str = ""
    calls: tuple[str, ...] = ()
    """What it says that its handlers ask of others."""
    breakers: dict[str, BreakerRules] = field(default_factory=dict, compare=False)
    """Rules of the circuit breakers that its handlers use, where they are not the usual ones."""
    limits: dict[str, Limit] = field(default_factory=dict, compare=False)
    """Of resources it uses, where no operator says otherwise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one capability on one peer. Times in seconds."""

    concurrency: int
    timeout_s: float
    attempts: int
    result_ttl_s: float | None
    wait: wait_base
    throttled_for_s: float = 3_600.0
    queue_max: int | None = None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("concurrency", self.concurrency, 1, CONCURRENCY_MAX),
            ("timeout_s", self.timeout_s, 0.001, 30 * 86_400),
            ("attempts", self.attempts, 1, ATTEMPTS_MAX),
            ("result_ttl_s", self.result_ttl_s if self.result_ttl_s is not None else 1, 1, 10 * 365 * 86_400),
            ("throttled_for_s", self.throttled_for_s, 0, 30 * 86_400),
            ("queue_max", self.queue_max if self.queue_max is not None else 1, 1, QUEUE_MAX),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SetupError(f"{name} is {value!r}; it must be a number")
            if not least <= value <= most:
                raise SetupError(f"{name} is {value:g}, outside {least:g} to {most:g}")
            if name in _WHOLE and value != int(value):
                raise SetupError(f"{name} is {value:g}; it must be a whole number")
        self._check_wait()

    def _check_wait(self) -> None:
        if not callable(self.wait):
            raise SetupError(f"wait is {self.wait!r}; it must be one of tenacity's wait strategies")
        for failed in sorted({1, int(self.attempts)}):
            try:
                told_s = wait_s(self.wait, failed, is_checked=False)
            except Exception as error:
                raise SetupError(f"wait cannot tell how long to wait after failure {failed}: {error}") from error
            if not 0 <= told_s <= WAIT_S_MAX:
                raise SetupError(
                    f"wait says {told_s:g} s after failure {failed}, outside 0 to {WAIT_S_MAX:g} s (30 days)"
                )


class Capability(Reference[I, O], Generic[I, O, Called]):
    """A handler and its typed name: callable as the plain function, and a reference for callers."""

    def __init__(
        self,
        name: str,
        handler: Callable[..., Any],
        agent: AgentInfo,
        limits: Limits,
        *,
        ladder: Ladder | None = None,
        verified_by: Verifiers | None = None,
        payload_class: Callable[[Any], str] | None = None,
        rules: Rules = NO_RULES,
    ) -> None:
        try:
            check_capability(name)
        except ContractError as error:
            raise SetupError(str(error)) from error
        self.handler = handler
        self.agent = agent
        self.decided_by = DecidedBy(agent=agent.name, version=agent.version)
        self.limits = limits
        self.rules = rules
        self.description = (inspect.getdoc(handler) or "").partition("\n\n")[0].replace("\n", " ")
        self.is_async = inspect.iscoroutinefunction(handler)
        signature = _Signature.of(name, handler, is_async=self.is_async)
        taken = signature.shape("payload", signature.payload_type)
        super().__init__(name, takes=taken, returns=signature.shape("return type", signature.returns))
        self.ladder = ladder
        self.verified_by = verified_by
        self._payload_class = payload_class
        self.is_durable = self.is_async and (signature.context is not None or signature.hands_over)
        self.is_durable |= ladder is not None or verified_by is not None
        """Whether its tasks may wait for others, and so have records of their own."""
        if not self.is_async and (ladder or verified_by):
            raise SetupError(f"{signature.where} is a plain function: a ladder and verifiers need an async one")
        self.call: Callable[[Any, Context | BlockingContext], Any] = signature.caller(handler)
        self.__doc__ = handler.__doc__
        self.__name__ = getattr(handler, "__name__", name)
        self.__wrapped__ = handler

    def __call__(self, *args: Any, **kwargs: Any) -> Called:
        """Call the handler itself, as in a unit test: no mesh, no task, no retry."""
        called: Called = self.handler(*args, **kwargs)
        return called

    def class_of(self, payload: I) -> str:
        """The class of a payload, empty where its author names none, or cannot."""
        if self._payload_class is None:
            return ""
        try:
            return str(self._payload_class(payload))[:CLASS_LENGTH_MAX]
        except Exception:
            log.exception("the payload class of %s cannot be told", self.name)
            return ""

    def card(self) -> CapabilityCard:
        return CapabilityCard(
            name=self.name,
            description=self.description,
            input_schema=self.input.schema(),
            output_schema=self.output.schema(),
            concurrency=self.limits.concurrency,
            timeout_s=self.limits.timeout_s,
            attempts=self.limits.attempts,
            result_ttl_s=self.limits.result_ttl_s or 0.0,
            queue_max=self.limits.queue_max or 0,
            next_rung=self.ladder.next_rung if self.ladder is not None else "",
            threshold=self.ladder.threshold if self.ladder is not None else 0.0,
            verified_by=self.verified_by.capabilities if self.verified_by is not None else (),
        )


def calls_of(agent: AgentInfo, capabilities: typing.Iterable[Capability[Any, Any, Any]]) -> tuple[str, ...]:
    """The capabilities that an agent asks, by name: those it declares, its ladders' next rungs, its verifiers."""
    called = set(agent.calls)
    for capability in capabilities:
        if capability.ladder is not None:
            called.add(capability.ladder.next_rung)
        if capability.verified_by is not None:
            called.update(capability.verified_by.capabilities)
    return tuple(sorted(called))


def agent_card(agent: AgentInfo, capabilities: typing.Iterable[Capability[Any, Any, Any]]) -> AgentCard:
    """The card of an agent with its capabilities."""
    capabilities = tuple(capabilities)
    return AgentCard(
        name=agent.name,
        version=agent.version,
        owner=agent.owner,
        role=agent.role,
        description=agent.description,
        calls=calls_of(agent, capabilities),
        capabilities=tuple(capability.card() for capability in capabilities),
    )


@dataclass(frozen=True, slots=True)
class _Signature:
    """A handler's parameters, sorted into payload, context and dependencies."""

    where: str
    payload: str | None
    payload_type: Any
    context: str | None
    returns: Any
    hands_over: bool
    has_dependencies: bool

    @classmethod
    def of(cls, name: str, handler: Callable[..., Any], *, is_async: bool) -> "_Signature":
        where = f"handler {getattr(handler, '__qualname__', handler)!s} of {name!r}"
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise SetupError(f"{where} is a generator: return one value, and stream parts with `ctx.emit`")
        try:
            hints = typing.get_type_hints(handler, include_extras=True)
        except NameError as error:
            raise SetupError(f"{where}: its annotations do not resolve at module level: {error}") from error
        payload = context = None
        payload_type: Any = type(None)
        has_dependencies = False
        for parameter in inspect.signature(handler).parameters.values():
            annotation = hints.get(parameter.name, inspect.Parameter.empty)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise SetupError(f"{where} takes *args or **kwargs: a task has one payload")
            if annotation in (Context, BlockingContext):
                wanted = Context if is_async else BlockingContext
                if annotation is not wanted:
                    kind = "an async" if is_async else "a plain"
                    raise SetupError(f"{where} is {kind} function: annotate {parameter.name!r} as {wanted.__name__}")
                context = parameter.name
            elif isinstance(parameter.default, Dependant) or any(
                isinstance(extra, Dependant) for extra in getattr(annotation, "__metadata__", ())
            ):
                has_dependencies = True
            elif annotation is inspect.Parameter.empty:
                raise SetupError(f"{where}: annotate parameter {parameter.name!r}, types come from annotations")
            elif payload is None:
                payload, payload_type = parameter.name, annotation
            elif parameter.default is inspect.Parameter.empty:
                raise SetupError(
                    f"{where} takes both {payload!r} and {parameter.name!r}: a task has one payload;"
                    f" put several fields into a msgspec.Struct"
                )
        if "return" not in hints:
            raise SetupError(f"{where}: annotate what it returns, types come from annotations")
        returns = _without_endings(hints["return"])
        hands_over = returns is not hints["return"]
        if hands_over and not is_async:
            raise SetupError(f"{where} is a plain function: handing a task over needs an async one")
        return cls(where, payload, payload_type, context, returns, hands_over, has_dependencies)

    def shape(self, what: str, annotation: Any) -> Shape[Any]:
        try:
            return Shape(annotation)
        except ContractError as error:
            raise SetupError(f"{self.where}: its {what}: {error}") from error

    def caller(self, handler: Callable[..., Any]) -> Callable[[Any, Context | BlockingContext], Any]:
        payload, context = self.payload, self.context
        target = inject(handler, cast=False) if self.has_dependencies else handler
        if payload and context:
            return lambda value, ctx: target(**{payload: value, context: ctx})
        if payload:
            return lambda value, _: target(**{payload: value})
        if context:
            return lambda _, ctx: target(**{context: ctx})
        return lambda _, __: target()


def _without_endings(annotation: Any) -> Any:
    """A return type without the ways to hand a task over, which are no values."""
    if annotation in _ENDINGS:
        # A handler that only ever hands over: whatever the other one answers.
        return Any
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    values = [one for one in typing.get_args(annotation) if one not in _ENDINGS]
    if len(values) == len(typing.get_args(annotation)):
        return annotation
    return functools.reduce(operator.or_, values) if values else Any


_ENDINGS = (Handoff, Escalate)
