"""What a model may call: capabilities of the mesh, as their owners describe them."""

import fnmatch
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from contracts import wire
from contracts.card import AgentCard, CapabilityCard, Described
from mesh.capability import Capability
from mesh.client import Mesh
from mesh.context import Context
from mesh.digest import digest
from mesh.endings import HUMAN
from mesh.errors import Transient
from mesh.ext.pydantic_ai.naming import numbered
from mesh.payload import encode
from mesh.reference import Reference
from mesh.settings import Settings

ASK_WITHIN_S: Final = 0.5
_WILD: Final = "*?["


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A capability as a model is told of it. What is not known is left out."""

    capability: Annotated[str, Meta(description="What it is asked for by.")]
    description: Annotated[str, Meta(description="What it does, in its owner's words.")] = ""
    agent: Annotated[str, Meta(description="The agent that handles it.")] = ""
    owner: Annotated[str, Meta(description="The team that owns the agent.")] = ""
    input_schema: Annotated[dict[str, Any], Meta(description="JSON Schema of the payload.")] = {}
    timeout_s: Annotated[float, Meta(description="An attempt that takes longer has failed.")] = 0.0
    attempts: Annotated[int, Meta(description="Attempts a task has.")] = 0

    def told(self) -> str:
        """What a model reads: what it does, whose it is, and its limits."""
        owner = f" (owner: {self.owner})" if self.owner else ""
        limits = [f"{self.timeout_s:g} s an attempt"] if self.timeout_s else []
        limits += [f"{self.attempts} attempt{'s' if self.attempts > 1 else ''}"] if self.attempts else []
        lines = [
            self.description,
            f"Handled by the agent {self.agent}{owner}." if self.agent else "",
            f"Limits: {', '.join(limits)}." if limits else "",
        ]
        return "\n".join(line for line in lines if line) or f"The capability {self.capability} of the mesh."


Tool = Reference[Any, Any] | Offer | str
Lookup = Callable[[], Awaitable[Sequence[Offer]]]


@dataclass(frozen=True, slots=True)
class Callee:
    """An offer, and the typed reference where there is one."""

    offer: Offer
    reference: Reference[Any, Any] | None = None


async def offered(tools: Sequence[Tool], ctx: Context, lookup: Lookup) -> list[Callee]:
    """What the tools stand for, each capability once; names are looked up in a step.

    Raises:
        Transient: no live peer offers a capability that is named.
    """
    callees = [_callee(tool) for tool in tools if not isinstance(tool, str)]
    names = [tool for tool in tools if isinstance(tool, str)]
    if names:
        step = numbered(ctx, f"offers-{digest(encode(names))[:16]}")
        found = await ctx.step(step, partial(_find, lookup, names, ctx.capability), returns=list[Offer])
        callees += [Callee(offer) for offer in found]
    once: dict[str, Callee] = {}
    for callee in callees:
        once.setdefault(callee.offer.capability, callee)
    return list(once.values())


async def live_offers(settings: Settings | None = None) -> list[Offer]:
    """What the live peers offer now, by name; of several versions of an agent, what the last one says."""
    async with Mesh.connect(settings=settings) as mesh:
        subject = mesh.bus.subjects.ctl("all", "describe")
        answers = await mesh.bus.gather(subject, b"", within_s=ASK_WITHIN_S)
    cards = [card for described in wire.readable(Described, answers) for card in described.cards]
    cards.sort(key=lambda card: (card.name, card.version))
    found = {offer.capability: offer for card in cards for offer in offers_of(card)}
    return [found[name] for name in sorted(found)]


def offers_of(card: AgentCard) -> list[Offer]:
    """What an agent offers, by its card."""
    return [_offer(capability, agent=card.name, owner=card.owner) for capability in card.capabilities]


def _offer(card: CapabilityCard, *, agent: str, owner: str) -> Offer:
    return Offer(
        capability=card.name,
        description=card.description,
        agent=agent,
        owner=owner,
        input_schema=card.input_schema,
        timeout_s=card.timeout_s,
        attempts=card.attempts,
    )


def _callee(tool: Reference[Any, Any] | Offer) -> Callee:
    match tool:
        case Offer():
            return Callee(tool)
        case Capability():
            return Callee(_offer(tool.card(), agent=tool.agent.name, owner=tool.agent.owner), tool)
        case _:
            return Callee(Offer(capability=tool.name, input_schema=tool.input.schema()), tool)


async def _find(lookup: Lookup, names: Sequence[str], asking: str) -> list[Offer]:
    offers = {offer.capability: offer for offer in await lookup()}
    missing = [name for name in names if name not in offers and not _is_wild(name)]
    if missing:
        raise Transient(f"no live peer offers {', '.join(missing)}, which the model is to be given as tools")
    hidden = {asking, HUMAN}
    wanted = [
        capability
        for name in names
        for capability in ([name] if not _is_wild(name) else sorted(fnmatch.filter(offers.keys() - hidden, name)))
    ]
    return [offers[capability] for capability in dict.fromkeys(wanted)]


def _is_wild(name: str) -> bool:
    return any(sign in name for sign in _WILD)
