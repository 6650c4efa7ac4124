"""LLM agents that survive their peer, with pydantic-ai. Needs the extra: `pip install 'starling-mesh[llm]'`.

    llm = LLMAgent(model_from_settings(), instructions="…")
    durable = Durable(llm, tools=[lookup_order, "refund"])

    @agent.handles("answer", timeout_s=600)
    async def answer(question: Question, ctx: Context) -> str:
        return (await durable.run(question.text, ctx)).output

Every model request and every tool call of the run is a recorded step: a peer that takes over a killed one's task
goes on from the last record. A request that was under way when its peer died is made once more.
"""

from mesh.ext.pydantic_ai.durable import Durable
from mesh.ext.pydantic_ai.endpoint import model_from_settings
from mesh.ext.pydantic_ai.offers import Offer, live_offers
from mesh.ext.pydantic_ai.toolset import CapabilityTools

__all__ = ["CapabilityTools", "Durable", "Offer", "live_offers", "model_from_settings"]
