"""An agent that fails in every way, with credentials at hand."""

from pydantic_ai import Agent as LLMAgent

from mesh import Agent, Context, Permanent, Transient
from mesh.ext.pydantic_ai import Durable, model_from_settings

agent = Agent("failing", version="1", owner="nobody")
llm: LLMAgent[None, str] = LLMAgent(model_from_settings(), name="llm", instructions="Answer.")
durable = Durable(llm, tools=[])


@agent.handles("fail", attempts=2)
async def fail(how: str, ctx: Context) -> str:
    """Fail."""
    match how:
        case "transient":
            raise Transient("not now")
        case "permanent":
            raise Permanent("never")
        case "bug":
            return str({}["nothing"])
        case _:
            return (await durable.run(how, ctx)).output
