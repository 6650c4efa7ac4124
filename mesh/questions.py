"""Questions to live peers: who is answered."""

from typing import Any

from faststream import BaseMiddleware
from faststream.message import StreamMessage

from mesh.bus.provenance import is_inbox


class AnswersToInboxes(BaseMiddleware[Any, Any]):
    """Sends answers to inboxes only.

    The asker names the subject of the answer, and the answer is published with this peer's rights: asked to answer to a
    result's subject, it would write one.
    """

    async def consume_scope(self, call_next: Any, msg: StreamMessage[Any]) -> Any:
        if not is_inbox(msg.reply_to):
            msg.reply_to = ""
        return await call_next(msg)
