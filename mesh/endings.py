"""What a handler may return instead of a value, what stands behind its answer, and what a person decided.

A handler whose answer is not good enough yet returns `Handoff` or `Escalate`; the runtime waits for whoever
decides instead and answers the task with what they came to. The handler is not run again for that.
"""

from dataclasses import dataclass
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from contracts.decision import Decision as Chosen
from contracts.errors import ContractError
from contracts.subjects import check_capability
from contracts.workflow import Verdict
from mesh.errors import Rejected, SetupError

T = TypeVar("T", default=Any)

HUMAN: Final = "human"
"""The capability behind which people answer."""
NOTHING: Final[Any] = object()
NOTE_LENGTH_MAX: Final = 4_000


@dataclass(frozen=True, slots=True)
class Handoff:
    """A tail call: another capability's answer becomes this task's. `to` is a capability or its name.

    `carry` goes along beside the payload and is the other's `ctx.carry`; it must travel as JSON and be small
    (64 kB). A chain of handoffs that comes back to the same capability with the same payload, or is too long,
    fails the task.
    """

    to: Any
    payload: Any = None
    carry: Any = None
    reason: str = ""
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Escalate:
    """Give the task to the next rung of the capability's ladder, with the payload it came with.

    `value` is the best answer so far, for the one who decides. Without a ladder the task fails.
    """

    reason: str = ""
    confidence: float | None = None
    value: Any = NOTHING
    carry: Any = None


@dataclass(frozen=True, slots=True)
class Ladder:
    """Answers below `threshold` are not given: `next_rung`, a capability's name, decides instead.

    An answer's confidence is what the handler told `ctx.explain`; one that told none counts as sure. The last
    rung is usually `human`: there a person sees the answer as a proposal.

    Raises:
        SetupError: the threshold is outside 0 to 1, or the next rung is no capability's name.
    """

    threshold: float
    next_rung: str = HUMAN

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SetupError(f"threshold is {self.threshold:g}, outside 0 to 1")
        _checked(self.next_rung)


@dataclass(frozen=True, slots=True, init=False)
class Verifiers:
    """An answer stands only when `agree` of these capabilities' agents agree; otherwise it escalates.

    Each takes a `contracts.workflow.Claim` and returns a `Check`. One name with `of=3` asks the same
    capability three times.

    Raises:
        SetupError: no verifier, an illegal name, or more votes needed than are asked for.
    """

    capabilities: tuple[str, ...]
    agree: int

    def __init__(self, *capabilities: str, agree: int, of: int | None = None) -> None:
        if of is not None and len(capabilities) != 1:
            raise SetupError("of= repeats one verifier; name several without it")
        asked = capabilities * (of or 1)
        for capability in asked:
            _checked(capability)
        if not 1 <= agree <= len(asked):
            raise SetupError(f"agree is {agree}, outside 1 to the {len(asked)} verifiers asked")
        object.__setattr__(self, "capabilities", asked)
        object.__setattr__(self, "agree", agree)


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What became of a proposal. `by` is empty where nobody answered and the deadline, or a sample, decided."""

    verdict: Verdict
    approved: T | None
    by: str = ""
    note: str = ""
    at: float = 0.0

    def on_record(self) -> Chosen:
        """The same as the decision that stands in the outcome of the task that asked."""
        return Chosen(choice=self.verdict, reason=self.note[:NOTE_LENGTH_MAX], at=self.at, by=self.by)

    @property
    def is_approved(self) -> bool:
        """Whether there is a value to go on with, as proposed or edited."""
        return self.verdict is not Verdict.REJECTED

    @property
    def value(self) -> T:
        """The value to go on with.

        Raises:
            Rejected: there is none; uncaught, it fails the task for good.
        """
        if not self.is_approved:
            who = f" by {self.by}" if self.by else ""
            raise Rejected(f"rejected{who}{f': {self.note}' if self.note else ''}")
        return self.approved  # type: ignore[return-value]  # None is a value where T allows it


def _checked(capability: str) -> None:
    try:
        check_capability(capability)
    except ContractError as error:
        raise SetupError(str(error)) from error
