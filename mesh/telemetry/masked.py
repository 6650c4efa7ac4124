"""Text without what an address may carry before its host: `http://user:password@host` → `http://host`."""

import re
from typing import Final

_USER_INFORMATION: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")


def masked(text: str) -> str:
    """The text with the user information of every address in it left out."""
    return _USER_INFORMATION.sub("", text) if "@" in text else text
