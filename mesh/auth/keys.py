"""NKEYs of users: a seed, which is a secret, and the public key that the server knows."""

import binascii
import secrets
from typing import Any

from mesh.errors import SetupError


def new_seed() -> str:
    """The seed of a new user.

    Raises:
        SetupError: the extra `auth` is not installed.
    """
    nkeys = _nkeys()
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)).decode()


def public_key(seed: str) -> str:
    """The public key of a seed.

    Raises:
        SetupError: it is no user's seed, or the extra `auth` is not installed.
    """
    nkeys = _nkeys()
    try:
        pair = nkeys.from_seed(bytearray(seed.strip().encode()))
        key = bytes(pair.public_key).decode()
    except (nkeys.NkeysError, binascii.Error, ValueError, TypeError) as error:
        # What the library says may show the seed.
        raise SetupError(f"not a seed of a user ({type(error).__name__})") from None
    if not key.startswith("U"):
        raise SetupError("a seed, but not of a user")
    return key


def _nkeys() -> Any:
    try:
        import nkeys  # type: ignore[import-untyped]  # it ships no types
    except ImportError:
        raise SetupError("keys need more: pip install 'starling-mesh[auth]'") from None
    return nkeys
