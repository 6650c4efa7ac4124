"""How a payload is recognised."""

import hashlib

DIGEST_LENGTH = 32


def digest(payload: bytes) -> str:
    """The first 128 bits of the payload's SHA-256, in hex."""
    return hashlib.sha256(payload).hexdigest()[:DIGEST_LENGTH]
