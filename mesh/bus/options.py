"""How a connection is opened: plain values → nats-py's keyword arguments.

Plain values fit into a line of JSON. So the heartbeat process can be told them without importing the
settings, and without anything secret on a command line.
"""

import logging
import ssl
from typing import Any

NO_NEWS = "returning true from eof_received() has no effect when using ssl"
"""What asyncio warns of whenever a TLS connection of nats-py's ends, in good order, too."""


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != NO_NEWS


def client_options(plain: dict[str, str]) -> dict[str, Any]:
    """Keyword arguments for `nats.connect` and `NatsBroker`: reconnect for ever, notice a dead link in seconds."""
    logging.getLogger("asyncio").addFilter(_is_news)  # the same filter is added once
    options: dict[str, Any] = {
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        # nats-py waits this and then its own connect timeout, for each address in turn; in whole or part seconds.
        "reconnect_time_wait": 0.25,
        "connect_timeout": 2,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
    }
    if "nats_tls_ca" in plain or "nats_tls_cert" in plain:
        context = ssl.create_default_context(cafile=plain.get("nats_tls_ca"))
        if "nats_tls_cert" in plain:
            context.load_cert_chain(plain["nats_tls_cert"], plain.get("nats_tls_key"))
        options["tls"] = context
    for field, option in (
        ("nats_user", "user"),
        ("nats_password", "password"),
        ("nats_token", "token"),
        ("nats_creds", "user_credentials"),
        ("nats_nkey_seed", "nkeys_seed"),
        ("nats_inbox_prefix", "inbox_prefix"),
    ):
        if field in plain:
            options[option] = plain[field]
    return options
