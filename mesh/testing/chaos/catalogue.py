"""Every fault by name, with how long one lasts: lengths are drawn, in the measure of what they have to outlast."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from contracts.errors import ContractError
from mesh.bus.connection import REPLY_WITHIN_S
from mesh.testing import faults, inner_faults, network_faults, stream_faults
from mesh.testing.faults import Fault, Need


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault that can be drawn; `draw` takes the dice and `ack_wait` in seconds."""

    fault: type[Fault]
    draw: Callable[[random.Random, float], Fault]

    @property
    def name(self) -> str:
        return self.fault.name

    @property
    def needs(self) -> frozenset[Need]:
        return self.fault.needs

    @property
    def is_safe(self) -> bool:
        return self.fault.is_safe

    @property
    def told(self) -> str:
        """What it does, in a sentence."""
        return (self.fault.__doc__ or "").partition("\n")[0].replace("`", "")


CLOCKS_AHEAD_S = (-20.0, -5.0, -1.0, 1.0, 5.0, 20.0)
"""Waits for the clock that begin while it is off are off as much, so a game day has to outlast this."""

KINDS: tuple[Kind, ...] = (
    Kind(faults.KillPeer, lambda dice, wait_s: faults.KillPeer()),
    Kind(faults.FreezePeer, lambda dice, wait_s: faults.FreezePeer(wait_s * dice.uniform(1.2, 1.6))),
    Kind(faults.DrainPeer, lambda dice, wait_s: faults.DrainPeer()),
    Kind(inner_faults.BlockLoop, lambda dice, wait_s: inner_faults.BlockLoop(wait_s * dice.uniform(0.6, 1.4))),
    Kind(inner_faults.SlowHandler, lambda dice, wait_s: inner_faults.SlowHandler(dice.uniform(2, 4))),
    Kind(inner_faults.DropAcks, lambda dice, wait_s: inner_faults.DropAcks(dice.uniform(1, 3))),
    Kind(inner_faults.LateAcks, lambda dice, wait_s: inner_faults.LateAcks(dice.uniform(1, 3), late_s=1.2 * wait_s)),
    Kind(
        inner_faults.ShiftClock,
        lambda dice, wait_s: inner_faults.ShiftClock(dice.uniform(2, 4), ahead_s=dice.choice(CLOCKS_AHEAD_S)),
    ),
    Kind(faults.KillBroker, lambda dice, wait_s: faults.KillBroker(dice.choice((0.0, dice.uniform(0.5, 2))))),
    Kind(faults.RestartBroker, lambda dice, wait_s: faults.RestartBroker()),
    Kind(faults.FreezeBroker, lambda dice, wait_s: faults.FreezeBroker(REPLY_WITHIN_S * dice.uniform(1.1, 1.4))),
    Kind(faults.KillLeader, lambda dice, wait_s: faults.KillLeader(dice.choice((0.0, dice.uniform(0.5, 3))))),
    Kind(faults.FreezeLeader, lambda dice, wait_s: faults.FreezeLeader(REPLY_WITHIN_S * dice.uniform(1.1, 1.4))),
    Kind(faults.StepDown, lambda dice, wait_s: faults.StepDown()),
    Kind(faults.KillAll, lambda dice, wait_s: faults.KillAll(dice.uniform(0, 1))),
    Kind(network_faults.DelayNetwork, lambda dice, wait_s: network_faults.DelayNetwork(dice.uniform(2, 4))),
    Kind(network_faults.ThrottlePeer, lambda dice, wait_s: network_faults.ThrottlePeer(dice.uniform(2, 4))),
    Kind(
        network_faults.PartitionPeer, lambda dice, wait_s: network_faults.PartitionPeer(wait_s * dice.uniform(0.7, 1.5))
    ),
    Kind(
        network_faults.PartitionHalf, lambda dice, wait_s: network_faults.PartitionHalf(wait_s * dice.uniform(0.7, 1.5))
    ),
    Kind(network_faults.CutPeer, lambda dice, wait_s: network_faults.CutPeer(dice.uniform(0, 2))),
    Kind(network_faults.CutSubmitter, lambda dice, wait_s: network_faults.CutSubmitter(dice.uniform(0, 2))),
    Kind(
        network_faults.PartitionLeader,
        lambda dice, wait_s: network_faults.PartitionLeader(REPLY_WITHIN_S * dice.uniform(0.6, 2)),
    ),
    Kind(stream_faults.FillStream, lambda dice, wait_s: stream_faults.FillStream(dice.uniform(2, 4))),
    Kind(faults.SubmitAgain, lambda dice, wait_s: faults.SubmitAgain()),
    Kind(faults.CancelTask, lambda dice, wait_s: faults.CancelTask()),
)


def chosen(
    names: Iterable[str] | None, *, has: frozenset[Need], is_safe_only: bool = False, kinds: Iterable[Kind] = KINDS
) -> tuple[Kind, ...]:
    """The kinds with these names, or all that a scene with such means can have.

    Raises:
        ContractError: a name is unknown, needs what the scene has not, or is not safe where only those may strike.
    """
    known = {kind.name: kind for kind in kinds}
    if names is None:
        return tuple(kind for kind in known.values() if kind.needs <= has and (kind.is_safe or not is_safe_only))
    found: list[Kind] = []
    for name in names:
        kind = known.get(name)
        if kind is None:
            raise ContractError(f"no fault is called {name!r}; there are {', '.join(known)}")
        if is_safe_only and not kind.is_safe:
            raise ContractError(f"{name} is not safe; those that are: {', '.join(k.name for k in KINDS if k.is_safe)}")
        if missing := kind.needs - has:
            raise ContractError(f"{name} needs {', '.join(sorted(missing))}, which this game day has not")
        found.append(kind)
    if not found:
        raise ContractError("no fault is named: name some, or leave the choice out")
    return tuple(found)
