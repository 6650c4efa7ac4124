"""What the desk's capabilities are asked, and what they answer."""

from typing import Annotated, Final

from msgspec import Meta, Struct

SUPPORT: Final = "support"
"""The capability that takes a ticket from its text to its resolution."""

TRIAGE: Final = "triage"
SPECIALIST: Final = "specialist"
HUMAN: Final = "human"
RUNGS: Final = (TRIAGE, SPECIALIST, HUMAN)


class Ticket(Struct, frozen=True):
    """What a customer wrote."""

    text: str


class Label(Struct, frozen=True, omit_defaults=True):
    """What a ticket is about. A person who corrects one writes the label alone."""

    label: str
    rung: Annotated[str, Meta(description="Who settles it.")] = HUMAN
    confidence: Annotated[float, Meta(ge=0, le=1, description="The probability that the label is right.")] = 1.0


class LabelledTicket(Struct, frozen=True):
    """A ticket of which it is settled what it is about."""

    text: str
    label: Label


class Resolution(Struct, frozen=True):
    """What becomes of a ticket."""

    label: Annotated[str | None, Meta(description="What it is about; null where a person rejected it.")]
    rung: Annotated[str, Meta(description="Who settled it.")]
    confidence: Annotated[float, Meta(ge=0, le=1, description="The probability that the label is right.")]
    queue: Annotated[str, Meta(description="Who goes on with it.")]
    next_action: Annotated[str, Meta(description="What is done next.")]
