"""Where a large payload or value is kept: what stands in a record in its place."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from contracts.errors import ContractError
from contracts.subjects import check_object_name
from contracts.wire import Record

OBJECT_DIGEST_LENGTH: Final = 64
CHUNK_BYTES_MIN: Final = 1024
"""Of all chunks of an object but the last."""


class Kept(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object of a task: bytes kept as chunks, each a message on `<prefix>.object.<capability>.<id>.<name>.<n>`.

    It belongs to the task whose record names it, so a reference cannot reach for another task's. An object is written
    by one writer, under a name that no other one has, and referred to by one record and by copies of that record.
    """

    name: Annotated[str, Meta(description="Its name among the task's objects.")]
    bytes: Annotated[int, Meta(ge=0, description="How long it is.")]
    chunks: Annotated[int, Meta(ge=1, description="In how many messages it is kept, numbered from 0.")]
    digest: Annotated[
        str, Meta(min_length=OBJECT_DIGEST_LENGTH, max_length=OBJECT_DIGEST_LENGTH, description="SHA-256, hex.")
    ]
    content_type: Annotated[str, Meta(description="What it is; `application/json` when absent.")] = "application/json"
    line: Annotated[str, Meta(description="Of a payload in a line: the order key, under which it is kept.")] = ""

    def __post_init__(self) -> None:
        check_object_name(self.name)
        if self.chunks > self.bytes // CHUNK_BYTES_MIN + 1:
            raise ContractError(f"an object of {self.bytes} bytes cannot have {self.chunks} chunks")


class KeptPayload(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a task or park whose payload is kept as an object; the header `Mesh-Object` says that it is one."""

    kept: Annotated[Kept, Meta(description="Where the payload is.")]
