"""After the handler: hand the task over, have the answer verified, climb the ladder.

A handler's last word that is not yet the task's outcome is recorded once (`Closing`). What follows are ordinary
verbs over the task's own id, so it goes on after a crash or a park without the handler.

- A handoff is a call in tail position: what the other one came to is what the task came to.
- An answer that not enough verifiers agree to, one below its ladder's threshold, and an `Escalate` go to the ladder's
  next rung with the payload that the task came with; a person is shown the answer as a proposal instead.
- The chain of handoffs travels with the task. One that comes back to the same capability with the same payload is a
  circle, one longer than `MESH_HOPS_MAX` is taken for one; both end in `HandoffLoop`.
"""

from typing import Any

import msgspec

from contracts.errors import ContractError
from contracts.outcome import DecidedBy, Outcome, Status
from contracts.workflow import Check, Claim, Closing, HandoffTo, Proposal
from mesh import payload as payloads
from mesh.capability import Capability
from mesh.digest import digest
from mesh.endings import HUMAN, NOTHING, Escalate, Handoff
from mesh.errors import HandoffLoop, Permanent, TaskUnfinished
from mesh.payload import ANYTHING
from mesh.results import value_of
from mesh.task_context import CARRY_BYTES_MAX
from mesh.verbs import Verbs

CLOSING = "~~closing"


def closing_of(
    capability: Capability[Any, Any, Any], ended: Any, context: Verbs, outcome: Outcome, payload: bytes
) -> Closing | None:
    """The record that a handler's return value calls for, or None where `outcome` is the task's.

    `outcome` has the value that was returned, or none where the handler gave none.

    Raises:
        Permanent: it escalates, and the capability has no ladder.
        ContractError: what it hands over cannot travel.
    """
    if isinstance(ended, Handoff):
        to = HandoffTo(
            capability=getattr(ended.to, "name", ended.to),
            payload=msgspec.Raw(payloads.encode(ended.payload, context.content_type)),
            carry=_carried(ended.carry),
            reason=ended.reason,
            confidence=ended.confidence,
        )
        return Closing(outcome=outcome, to=to)
    if isinstance(ended, Escalate):
        if capability.ladder is None:
            raise Permanent(f"{context.identity} escalates, and {capability.name} has no ladder: {ended.reason}")
        outcome = msgspec.structs.replace(outcome, confidence=ended.confidence, reason=ended.reason)
        return Closing(outcome=outcome, to=_next_rung(capability, outcome, payload, ended.carry), is_rung=True)
    if capability.verified_by is not None:
        return Closing(outcome=outcome)
    if _is_below(capability, outcome):
        return Closing(outcome=outcome, to=_next_rung(capability, outcome, payload, None), is_rung=True)
    return None


def value_to_close(capability: Capability[Any, Any, Any], ended: Any, context: Verbs) -> bytes | None:
    """The encoded value that a handler returned, alone or with an `Escalate`; None where it gave none."""
    if isinstance(ended, Handoff):
        return None
    value = ended.value if isinstance(ended, Escalate) else ended
    return None if value is NOTHING else capability.output.encode(value, context.content_type)


async def conclude(
    capability: Capability[Any, Any, Any], closing: Closing, context: Verbs, payload: bytes, *, hops_max: int
) -> Outcome:
    """What the task comes to after its handler's last word.

    Raises:
        Permanent: nobody is left to decide, or a person said no.
        HandoffLoop: the task was handed around in a circle, or too far.
        ContractError: whoever decided answered something of another type.
    """
    to, is_rung = closing.to, closing.is_rung
    if to is None:
        votes = await _votes(capability, closing.outcome, context, payload)
        agreed = sum(vote.agrees for vote in votes)
        assert capability.verified_by is not None, "an answer to be verified has verifiers"
        if agreed >= capability.verified_by.agree:
            if not _is_below(capability, closing.outcome):
                return closing.outcome
            told = ""
        else:
            said = "; ".join(vote.reason for vote in votes if not vote.agrees and vote.reason)
            told = f"{agreed} of {len(votes)} verifiers agree, {capability.verified_by.agree} must{_after(said)}"
        if capability.ladder is None:
            raise Permanent(f"{context.identity}: {told}")
        reason = "; ".join(filter(None, (closing.outcome.reason, told)))
        doubted = msgspec.structs.replace(closing.outcome, reason=reason)
        to, is_rung = _next_rung(capability, doubted, payload, None), True
    context._passes_on(is_rung=is_rung)
    if is_rung and to.capability == HUMAN:
        return await _by_a_person(capability, closing.outcome, to, context)
    return await _by_another(capability, closing.outcome, to, context, payload, hops_max=hops_max)


async def _votes(
    capability: Capability[Any, Any, Any], outcome: Outcome, context: Verbs, payload: bytes
) -> list[Check]:
    assert capability.verified_by is not None, "an answer to be verified has verifiers"
    claim = Claim(
        capability=capability.name,
        payload=ANYTHING.decode(payload or b"null", context.content_type),
        value=ANYTHING.decode(bytes(_value(outcome)), context.content_type),
        confidence=outcome.confidence,
        reason=outcome.reason,
    )
    asked = [
        context._asked_for(verifier, claim, returns=Check, name=f"~verify-{number}")
        for number, verifier in enumerate(capability.verified_by.capabilities, start=1)
    ]

    async def vote(one: Any) -> Check:
        answered = await context._ask(one)
        try:
            check: Check = value_of(one.identity, answered.outcome, answered.as_type, one.returns)
        except (TaskUnfinished, ContractError) as error:
            # A verifier that cannot say yes has not said it.
            return Check(agrees=False, reason=str(error))
        return check

    return list(await context.gather(*(vote(one) for one in asked)))


async def _by_a_person(
    capability: Capability[Any, Any, Any], outcome: Outcome, to: HandoffTo, context: Verbs
) -> Outcome:
    proposed = None
    if outcome.value is not msgspec.UNSET:
        proposed = ANYTHING.decode(bytes(outcome.value), context.content_type)
    question = Proposal(
        proposal=proposed,
        reason=to.reason,
        confidence=to.confidence,
        asked_by=str(context.identity),
        subject=context._subject(),
    )
    decision = await context._decide(question, capability.output)
    context.decisions.append(decision.on_record())
    return msgspec.structs.replace(
        outcome,
        value=msgspec.Raw(capability.output.encode(decision.value, context.content_type)),
        decided_by=DecidedBy(agent=f"{HUMAN}:{decision.by}" if decision.by else HUMAN),
        confidence=None,
        reason=decision.note,
        decisions=tuple(context.decisions),
    )


async def _by_another(
    capability: Capability[Any, Any, Any],
    outcome: Outcome,
    to: HandoffTo,
    context: Verbs,
    payload: bytes,
    *,
    hops_max: int,
) -> Outcome:
    handed = (*context.task.handed, f"{capability.name}/{digest(payload)}")
    if f"{to.capability}/{digest(bytes(to.payload))}" in handed:
        raise HandoffLoop(f"handed in a circle: {_chain(handed)} -> {to.capability} with a payload it had before")
    if len(handed) > hops_max:
        raise HandoffLoop(f"handed over {len(handed)} times, {hops_max} are allowed: {_chain(handed)}")
    asked = context._asked_for(
        to.capability,
        ANYTHING.decode(bytes(to.payload), context.content_type),
        name="~handoff",
        reason=to.reason,
        confidence=to.confidence,
        handed=handed,
        carry=to.carry,
    )
    answered = await context._ask(asked)
    other = answered.outcome
    if other.status is Status.DONE:
        try:
            capability.output.decode(bytes(_value(other)), answered.as_type)
        except ContractError as error:
            told = f"{asked.identity} answers something that {capability.name} must not return: {error}"
            raise ContractError(told, path=error.path) from error
    return msgspec.structs.replace(
        outcome,
        status=other.status,
        value=other.value,
        failure=other.failure,
        decided_by=other.decided_by,
        confidence=other.confidence,
        reason=other.reason,
        sends=outcome.sends if other.status is Status.DONE else (),
    )


def _next_rung(capability: Capability[Any, Any, Any], outcome: Outcome, payload: bytes, carry: Any) -> HandoffTo:
    assert capability.ladder is not None, "only a ladder has rungs"
    return HandoffTo(
        capability=capability.ladder.next_rung,
        payload=msgspec.Raw(payload or b"null"),
        carry=_carried(carry),
        reason=outcome.reason,
        confidence=outcome.confidence,
    )


def _is_below(capability: Capability[Any, Any, Any], outcome: Outcome) -> bool:
    sure = outcome.confidence
    return capability.ladder is not None and sure is not None and sure < capability.ladder.threshold


def _carried(carry: Any) -> Any:
    if carry is None:
        return None
    encoded = payloads.encode(carry)
    if len(encoded) > CARRY_BYTES_MAX:
        raise ContractError(f"carry of {len(encoded)} bytes exceeds {CARRY_BYTES_MAX} bytes")
    return ANYTHING.decode(encoded)


def _value(outcome: Outcome) -> msgspec.Raw:
    return msgspec.Raw(b"null") if outcome.value is msgspec.UNSET else outcome.value


def _chain(handed: tuple[str, ...]) -> str:
    return " -> ".join(one.partition("/")[0] for one in handed)


def _after(text: str) -> str:
    return f": {text}" if text else ""
