"""JetStream's answers, and what each of its errors means to us."""

import re

import msgspec

from mesh.errors import BusError, BusUnavailable, PublishRejected, SequenceConflict, StreamFull

STREAM_NOT_FOUND = 10059
STREAM_NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
CONSUMER_NOT_FOUND = 10014
CONSUMER_EXISTS = 10148

_WRONG_SEQUENCE = 10071
_CONTENDED = 10164
_FULL = (10077, 10047, 10023, 10002)
_NOT_NOW = (10008, 10009, 10118)


class ErrorReply(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    seq: int = 0
    error: ErrorReply | None = None


class ApiError(BusError):
    """A JetStream API call was refused. `code` is the server's `err_code`, `status` its HTTP-like status."""

    def __init__(self, message: str, *, code: int, status: int) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.status = status


def translate(error: ErrorReply) -> BusError:
    """The exception that a refused publish becomes."""
    if error.err_code == _CONTENDED:
        # Another write to the subject is being replicated and may yet fail; ours did not happen.
        return BusUnavailable(f"{error.description} ({error.err_code})")
    if error.err_code == _WRONG_SEQUENCE:
        found = re.search(r"(\d+)$", error.description)
        return SequenceConflict(error.description, code=error.err_code, sequence=int(found[1]) if found else 0)
    if error.err_code in _FULL:
        # "per subject" is how an unguarded publish to a taken subject is refused, not a full stream.
        if "per subject" in error.description:
            return SequenceConflict(error.description, code=error.err_code)
        return StreamFull(error.description, code=error.err_code)
    if error.code == 503 or error.err_code in _NOT_NOW:
        return BusUnavailable(f"{error.description} ({error.err_code})")
    return PublishRejected(f"{error.description} ({error.err_code})", code=error.err_code)
