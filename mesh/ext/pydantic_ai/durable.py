"""An LLM agent whose runs are recorded under a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic_ai import Agent, AgentRunResult, UsageLimits
from pydantic_ai.messages import ModelMessage, UserContent

from mesh.context import Context
from mesh.ext.pydantic_ai.errors import translated
from mesh.ext.pydantic_ai.offers import Lookup, Tool, live_offers, offered
from mesh.ext.pydantic_ai.recording import OnMesh
from mesh.ext.pydantic_ai.spans import Replaying, instrumentation
from mesh.ext.pydantic_ai.toolset import CapabilityTools

D = TypeVar("D")
O = TypeVar("O")  # noqa: E741  # output


@dataclass(frozen=True)
class Durable(Generic[D, O]):
    """An LLM agent that a task can run: each model request and each tool call once, wherever the task goes on.

    `tools` are capabilities of the mesh that the model may call besides the LLM's own tools: capabilities,
    references, `Offer`s, or names. Names may have wildcards (`"support-*"`); they are looked up among the live
    peers once a task, and what was found is recorded. A capability never offers itself.

    `lookup` finds what the mesh offers. With `is_streaming` the endpoint is asked for a stream, and what it writes
    is emitted to the submitter; without, for whole responses.
    """

    llm: Agent[D, O]
    tools: Sequence[Tool] = ()
    lookup: Lookup = live_offers
    is_streaming: bool = True

    async def run(
        self,
        prompt: str | Sequence[UserContent] | None,
        ctx: Context,
        *,
        deps: D = None,  # type: ignore[assignment]  # as pydantic-ai has it
        history: Sequence[ModelMessage] = (),
        usage_limits: UsageLimits | None = None,
    ) -> AgentRunResult[O]:
        """The result of the LLM's run, as `llm.run(prompt)` gives it.

        The prompt must be the same on every replay: build it from the payload, or in a step. Usage, model and
        digests are told to `ctx`. A tool that is to use durable verbs itself runs outside a step if its metadata
        says `{"step": False}`.

        Raises:
            Throttled: the endpoint takes no more requests now; tried again when it says.
            Transient: the endpoint cannot be reached or is broken; tried again later.
            Permanent: it refuses the request, the model does not come to an answer of the LLM's type, a limit of
                usage is reached, or the LLM is set up in a way that cannot work.
            ContractError: a response or a tool's result is too large to be recorded.
        """
        replaying = Replaying()
        with translated(self.llm), replaying.scope():
            offers = await offered(self.tools, ctx, self.lookup)
            return await self.llm.run(
                prompt,
                deps=deps,
                message_history=list(history) or None,
                usage_limits=usage_limits,
                toolsets=[CapabilityTools(offers, ctx, replaying)] if offers else None,
                capabilities=[
                    OnMesh(
                        ctx,
                        name=self.llm.name or ctx.capability,
                        is_streaming=self.is_streaming,
                        replaying=replaying,
                    ),
                    *instrumentation(self.llm, ctx),
                ],
            )
