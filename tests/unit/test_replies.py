"""What each refusal of the server means: it did not happen, it was refused, or somebody was first."""

import pytest

from mesh.bus.replies import ErrorReply, translate
from mesh.errors import BusError, BusUnavailable, PublishRejected, SequenceConflict, StreamFull


@pytest.mark.parametrize(
    ("code", "err_code", "description", "kind"),
    [
        (400, 10071, "wrong last sequence: 17", SequenceConflict),
        (400, 10164, "wrong last sequence on this subject, in progress", BusUnavailable),
        (503, 10077, "maximum messages per subject exceeded", SequenceConflict),
        (503, 10077, "maximum messages exceeded", StreamFull),
        (503, 10077, "maximum bytes exceeded", StreamFull),
        (503, 10047, "insufficient storage resources available", StreamFull),
        (503, 10023, "insufficient resources", StreamFull),
        (400, 10002, "resource limits exceeded for account", StreamFull),
        (503, 10008, "JetStream system temporarily unavailable", BusUnavailable),
        (503, 10009, "JetStream cluster no leader", BusUnavailable),
        (500, 10118, "no leader is known", BusUnavailable),
        (503, 0, "something is not there now", BusUnavailable),
        (400, 10054, "message size exceeds maximum allowed", PublishRejected),
        (400, 10165, "invalid per-message TTL", PublishRejected),
        (0, 0, "", PublishRejected),
    ],
)
def test_a_refusal_becomes_the_error_that_says_what_to_do(
    code: int, err_code: int, description: str, kind: type[BusError]
) -> None:
    error = translate(ErrorReply(code=code, err_code=err_code, description=description))

    assert type(error) is kind
    assert description in str(error)
    if isinstance(error, PublishRejected):
        assert error.code == err_code


@pytest.mark.parametrize(("description", "sequence"), [("wrong last sequence: 17", 17), ("wrong last sequence", 0)])
def test_a_conflict_names_the_sequence_that_was_first_if_it_is_told(description: str, sequence: int) -> None:
    error = translate(ErrorReply(code=400, err_code=10071, description=description))

    assert isinstance(error, SequenceConflict)
    assert error.sequence == sequence
