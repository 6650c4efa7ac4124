"""What an agent chose and why, as data: part of a task's outcome, and an event."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from contracts import wire
from contracts.task import Confidence, UnixSeconds

_KEY_LENGTH: Final = 24


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One choice: what, why, how sure, from what, and which model and prompt had a part in it."""

    choice: Annotated[str, Meta(description="What was chosen: a short word, so that choices can be counted.")]
    at: Annotated[UnixSeconds, Meta(description="Unix time of the choice.")] = 0.0
    reason: Annotated[str, Meta(description="Why.")] = ""
    confidence: Annotated[Confidence | None, Meta(description="How sure the one who chose is.")] = None
    inputs: Annotated[Any, Meta(description="What it was chosen from, as the handler says.")] = None
    version: Annotated[str, Meta(description="Version of the agent that chose.")] = ""
    model: Annotated[str, Meta(description="The model it used.")] = ""
    model_digest: Annotated[str, Meta(description="Digest of the model's weights or configuration.")] = ""
    prompt_digest: Annotated[str, Meta(description="Digest of the prompt.")] = ""
    by: Annotated[str, Meta(description="Who chose, where it was not the agent: a person.")] = ""


def keyed(decisions: Iterable[Decision]) -> Iterator[tuple[str, Decision]]:
    """Each decision of a task with its key: the same in every run that decides the same, and for no other of the task.

    The key is made from the content, less the time, and from how often the task decided the same before.
    """
    seen: Counter[bytes] = Counter()
    for decision in decisions:
        content = wire.encode(msgspec.structs.replace(decision, at=0.0))
        number = seen[content]
        seen[content] += 1
        yield hashlib.sha256(b"%d:%s" % (number, content)).hexdigest()[:_KEY_LENGTH], decision


def dated(decisions: Iterable[Decision], before: Iterable[Decision]) -> tuple[Decision, ...]:
    """The decisions, each with the time at which an earlier run decided the same, if one did."""
    earlier = {key: decision.at for key, decision in keyed(before)}
    if not earlier:
        return tuple(decisions)
    return tuple(
        msgspec.structs.replace(decision, at=earlier.get(key, decision.at)) for key, decision in keyed(decisions)
    )
