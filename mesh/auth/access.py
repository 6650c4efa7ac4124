"""An access file: which users a mesh has, and what their agents handle and call.

meshes:
  mesh:                                      # the prefix of its subjects
    peers:
      triage: {agents: ["my_agents.triage"]} # what they handle and call is read from them
      writer: {handles: [write], calls: [triage], limits: [openai], breakers: [openai]}
    clients:
      shop: {calls: [triage]}
      people: {signals: {human: [answer]}}   # may answer what `human` asks
    operators: [ops]
    restorers: [vault]                       # `mesh restore`, and nothing in between
    monitors: [watch]
    jetstream: {max_file: 20GB}              # what its streams may take
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.errors import ContractError
from contracts.subjects import Subjects, check_breaker_name, check_capability, check_resource, check_step_name
from mesh.errors import SetupError

USER_LENGTH_MAX: Final = 40
_USER: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_SIZE: Final = re.compile(r"[1-9][0-9]*(K|M|G|T)?B?")

Role = Literal["peer", "client", "operator", "restorer", "monitor"]


def _user(name: str) -> str:
    if not _USER.fullmatch(name) or len(name) > USER_LENGTH_MAX:
        raise ValueError(
            f"user {name!r} must be small letters, digits and single '-' inside, at most {USER_LENGTH_MAX}"
        )
    return name


def _plain(check: Any) -> Any:
    def checked(name: str) -> str:
        try:
            return str(check(name))
        except ContractError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(checked)


def _size(text: str) -> str:
    if not _SIZE.fullmatch(text):
        raise ValueError(f"{text!r} is no size; write it as 512MB or 20GB")
    return text


def _prefix(text: str) -> str:
    return Subjects(text).prefix


User = Annotated[str, AfterValidator(_user)]
Prefix = Annotated[str, _plain(_prefix)]
CapabilityName = Annotated[str, _plain(check_capability)]
ResourceName = Annotated[str, _plain(check_resource)]
BreakerName = Annotated[str, _plain(check_breaker_name)]
SignalName = Annotated[str, _plain(check_step_name)]
Size = Annotated[str, AfterValidator(_size)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PeerAccess(_Strict):
    """A user for the peers that host some agents."""

    agents: tuple[str, ...] = Field(default=(), description="Files or modules, as `mesh run` takes them.")
    handles: tuple[CapabilityName, ...] = ()
    calls: tuple[CapabilityName, ...] = ()
    limits: tuple[ResourceName, ...] = Field(default=(), description="Resources used with `ctx.limit`.")
    breakers: tuple[BreakerName, ...] = Field(default=(), description="Used with `ctx.breaker`.")

    @model_validator(mode="after")
    def _handles_something(self) -> "PeerAccess":
        if not (self.agents or self.handles):
            raise ValueError("a peer needs `agents` or `handles`")
        return self


class ClientAccess(_Strict):
    """A user that submits tasks, waits for their results, and may cancel them."""

    calls: tuple[CapabilityName, ...] = ()
    signals: dict[CapabilityName, tuple[SignalName, ...]] = Field(
        default={}, description="Signals it may send, by capability: `human: [answer]` answers what people are asked."
    )

    @model_validator(mode="after")
    def _does_something(self) -> "ClientAccess":
        if not (self.calls or self.signals):
            raise ValueError("a client needs `calls` or `signals`")
        return self


class JetStreamLimits(_Strict):
    """What the streams of one mesh may take of the servers, all copies counted."""

    max_file: Size | None = None
    max_mem: Size | None = None
    max_streams: int | None = Field(default=None, ge=1)
    max_consumers: int | None = Field(default=None, ge=1)


class MeshAccess(_Strict):
    """One mesh: a prefix of subjects, and a pair of accounts."""

    peers: dict[User, PeerAccess] = {}
    clients: dict[User, ClientAccess] = {}
    operators: tuple[User, ...] = ()
    restorers: tuple[User, ...] = Field(
        default=(), description="Users of the account that holds the streams: the server restores for no other."
    )
    monitors: tuple[User, ...] = ()
    jetstream: JetStreamLimits = JetStreamLimits()

    def users(self) -> Iterator[tuple[User, Role]]:
        """Every user with its role, in order."""
        yield from ((user, "peer") for user in self.peers)
        yield from ((user, "client") for user in self.clients)
        yield from ((user, "operator") for user in self.operators)
        yield from ((user, "restorer") for user in self.restorers)
        yield from ((user, "monitor") for user in self.monitors)


class Access(_Strict):
    """A whole access file."""

    meshes: dict[Prefix, MeshAccess] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_unambiguous(self) -> "Access":
        users: dict[str, str] = {}
        streams: dict[str, str] = {}
        for prefix, mesh in self.meshes.items():
            for user, _ in mesh.users():
                if user in users:
                    raise ValueError(f"user {user!r} is there twice (meshes {users[user]!r} and {prefix!r})")
                users[user] = prefix
            account = Subjects(prefix).stream
            if account in streams:
                raise ValueError(f"meshes {streams[account]!r} and {prefix!r} would both have the account {account}")
            streams[account] = prefix
        if not users:
            raise ValueError("nobody is in it: name peers, clients, operators or monitors")
        return self


def read_access(document: Any) -> Access:
    """The access file that a document, as read from YAML, is.

    Raises:
        SetupError: it is none; every field that is wrong is named.
    """
    if not isinstance(document, Mapping):
        raise SetupError("it is empty or no mapping; it begins with `meshes:`")
    try:
        return Access.model_validate(document)
    except ValidationError as error:
        raise SetupError("\n".join(_told(each) for each in error.errors())) from None


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "[key]")
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        what = "no such field"
    return f"{place}: {what}" if place else what
