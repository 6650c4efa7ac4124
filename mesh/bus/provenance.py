"""Where a message on a subject that no stream keeps really comes from.

A server checks what a user publishes to, not the reply subject it names, and answers there whatever was asked: a
direct get of a record of one's own, answered to an echo's subject, looks like the echo to those who listen. But
what JetStream sends carries the stream and the subject of the stored message, in headers that the server itself adds
after the message's own (measured on 2.15.1), and of headers with one name the last counts here.
"""

from collections.abc import Mapping

from contracts import headers as names

INBOXES = "_INBOX"


def is_echo(found: Mapping[str, str] | None, *, stream: str, subject: str) -> bool:
    """Whether a message with such headers is what JetStream says of this subject of this stream."""
    return found is not None and found.get(names.STREAM) == stream and found.get(names.SUBJECT) == subject


def is_stored(found: Mapping[str, str] | None) -> bool:
    """Whether JetStream sent it, so that it is a record, and nothing that somebody published here."""
    return found is not None and names.STREAM in found


def is_inbox(reply: str) -> bool:
    """Whether an answer may be sent there: to an inbox, never to a subject that means something."""
    return reply.startswith(INBOXES)
