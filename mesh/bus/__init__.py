"""The one door to NATS: only this package knows JetStream's wire.

Server answers become ours here, in three kinds that callers must keep apart: it did not happen
(`BusUnavailable`), it was refused (`PublishRejected`), it may have happened (`PublishUnconfirmed`).
"""
