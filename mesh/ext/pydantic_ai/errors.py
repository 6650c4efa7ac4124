"""pydantic-ai's errors as the mesh's: what another attempt may heal, and what none will."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    AgentRunError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
    ModelRequestRejectedError,
    UserError,
)
from pydantic_ai.models import Model

from mesh.errors import Permanent, TaskError, Throttled, Transient
from mesh.resilience.classify import THROTTLING, THROTTLING_IF_TIMED, retry_after_s
from mesh.telemetry.masked import masked

TRY_AGAIN: Final = frozenset({408, 409, 423, 425})
"""Statuses below 500 that another attempt may not meet again."""


@contextmanager
def translated(llm: Agent[Any, Any]) -> Iterator[None]:
    """Raise what an LLM's run raises as `Transient` or `Permanent`, with its model and endpoint named.

    Raises:
        Throttled: the endpoint takes no more requests now (429), or says when it is there again (503).
        Transient: the endpoint cannot be reached or is broken.
        Permanent: it refuses the request, the model gives no valid answer, or a limit of usage is reached.
    """
    try:
        yield
    except FallbackExceptionGroup as group:
        told = [_translate(error, llm) for error in group.exceptions if isinstance(error, AgentRunError)]
        raise next((error for error in told if isinstance(error, Transient)), Permanent(str(group))) from group
    except AgentRunError as error:
        raise _translate(error, llm) from error
    except UserError as error:
        raise Permanent(f"the LLM cannot run as it is set up: {error}") from error


def _translate(error: AgentRunError, llm: Agent[Any, Any]) -> TaskError:
    if not isinstance(error, ModelAPIError):
        return Permanent(f"{_where(llm)}: {error}")
    where = f"model {error.model_name} at {_where(llm)}"
    if isinstance(error, ModelHTTPError):
        message = f"{where} answered {error.status_code}: {error.body}"
        after_s = retry_after_s(error.headers, now=time.time())
        after_s = error.retry_after if after_s is None else after_s
        status = error.status_code
        if status in THROTTLING or (status in THROTTLING_IF_TIMED and after_s is not None):
            return Throttled(message, after_s=after_s)
        if status >= 500 or status in TRY_AGAIN:
            return Transient(message, after_s=after_s)
        return Permanent(message)
    if isinstance(error, ModelRequestRejectedError):
        return Permanent(f"{where} refused the request: {error}")
    return Transient(f"{where}: {error}", after_s=error.retry_after)


def _where(llm: Agent[Any, Any]) -> str:
    model = llm.model
    if isinstance(model, Model):
        return masked(model.base_url or model.model_id)
    return str(model)
