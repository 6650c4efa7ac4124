"""What bounds the use of what the whole mesh shares, such as an LLM provider, and how much of it is in use."""

from typing import Annotated, Final

from msgspec import Meta, Struct, field

from contracts.errors import ContractError
from contracts.wire import Record

BURST_S: Final = 60.0
SEATS_MAX: Final = 100_000
PER_MINUTE_MAX: Final = 1e12
BURST_S_MIN, BURST_S_MAX = 0.001, 86_400.0


class Limit(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a resource all peers together may use; what is left out is not limited."""

    concurrent: Annotated[int | None, Meta(description="Calls that may run at once.")] = None
    requests_per_minute: Annotated[float | None, Meta(description="Calls that may start in a minute.")] = None
    tokens_per_minute: Annotated[float | None, Meta(description="Tokens that calls may use in a minute.")] = None
    burst_s: Annotated[
        float, Meta(description="What an idle bucket holds, as seconds of its rate; a request it holds always.")
    ] = BURST_S
    at: Annotated[float, Meta(description="Unix time at which an operator set it; 0 for one declared in code.")] = 0.0
    by: Annotated[str, Meta(description="Who set it.")] = ""

    @property
    def has_rate(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    @property
    def tokens_max(self) -> float | None:
        """The tokens that a full bucket holds, so the most that one call may ask for; None without a limit."""
        return None if self.tokens_per_minute is None else self.tokens_per_minute * self.burst_s / 60


def check_limit(limit: Limit) -> Limit:
    """`limit` itself, if it limits anything and can be kept.

    Raises:
        ContractError: a number is out of bounds, or there is none.
    """
    if limit.concurrent is None and not limit.has_rate:
        raise ContractError("a limit needs one of concurrent, requests_per_minute and tokens_per_minute")
    if limit.concurrent is not None and type(limit.concurrent) is not int:
        raise ContractError(f"concurrent is {limit.concurrent!r}, not a whole number")
    for name, value, least, most in (
        ("concurrent", limit.concurrent, 1, SEATS_MAX),
        ("requests_per_minute", limit.requests_per_minute, 0.001, PER_MINUTE_MAX),
        ("tokens_per_minute", limit.tokens_per_minute, 0.001, PER_MINUTE_MAX),
        ("burst_s", limit.burst_s, BURST_S_MIN, BURST_S_MAX),
    ):
        if value is not None and not (isinstance(value, (int, float)) and least <= value <= most):
            told = f"{value:g}" if isinstance(value, (int, float)) else repr(value)
            raise ContractError(f"{name} is {told}, outside {least:g} to {most:g}")
    return limit


class Holding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one peer holds of a resource's seats, and wants beside it. Times are the server's."""

    seats: Annotated[int, Meta(ge=0, description="Seats it holds.")] = 0
    wants: Annotated[int, Meta(ge=0, description="Seats it would take now.")] = 0
    since: Annotated[float, Meta(description="Unix time from which it stands in line for the next one.")] = 0.0
    until: Annotated[float, Meta(description="Unix time at which it counts no more, unless renewed.")] = 0.0


class Seats(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Who holds the seats of a resource with a limit of concurrency."""

    holdings: Annotated[dict[str, Holding], Meta(description="By the id of the peer.")] = field(default_factory=dict)
    limit: Annotated[Limit | None, Meta(description="The limit that the last writer went by.")] = None


class Bucket(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How full a bucket of a resource is. Amounts are seconds of its rate, times are the server's."""

    until: Annotated[float, Meta(description="Unix time at which it is full again if nobody takes more.")] = 0.0
    fresh: Annotated[float, Meta(description="It is full again no earlier than so long after the storing.")] = 0.0
    booked: Annotated[float, Meta(description="Everything ever booked; what was given back counts, too.")] = 0.0


class Rate(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The buckets of a resource with a limit of its rate."""

    requests: Annotated[Bucket, Meta(description="The bucket of requests.")] = Bucket()
    tokens: Annotated[Bucket, Meta(description="The bucket of tokens.")] = Bucket()
    turn: Annotated[float, Meta(description="Unix time by the server at which the last caller's turn comes.")] = 0.0
    limit: Annotated[Limit | None, Meta(description="The limit that the last writer went by.")] = None
