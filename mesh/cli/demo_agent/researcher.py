"""Two agents for `mesh demo-agent`: a researcher, which is an LLM, and a library, which the LLM asks."""

from typing import Annotated

from msgspec import Meta, Struct
from pydantic_ai import Agent as LLMAgent

from mesh.agent import Agent
from mesh.context import Context
from mesh.ext.pydantic_ai import Durable, model_from_settings

NOTES = {
    "heartbeat": "A sign of life at intervals. Who gives none for a while loses its work to somebody else.",
    "ack": "The word that a piece of work is done. What is not acked is handed out again.",
    "duplicate": "Work that was handed out again may run twice, so a second result has to be refused.",
    "idempotency key": "A name for an effect, the same on every repetition, by which the far side knows it again.",
    "recorded step": "The result of a step, stored before the next one starts. Who comes after reads it instead.",
    "leader": "One process that decides for all. When it fails, nobody decides until another one is elected.",
    "backpressure": "Refusing new work while there is no room for it, instead of losing it later.",
    "dead letter": "Work that was given up, kept with the reason for a person to look at.",
    "model call": "Seconds of waiting and a line on the bill. It is worth a record of its own.",
}


class Question(Struct, frozen=True):
    """What is to be found out."""

    text: str


class Topic(Struct, frozen=True):
    """What to look up."""

    name: Annotated[str, Meta(description=f"One of: {', '.join(NOTES)}.")]


library = Agent("library", owner="docs", description="Notes about work that outlives its worker.")


@library.handles("look-up", concurrency=16, timeout_s=10)
async def look_up(topic: Topic) -> str:
    """Look up what the library has about one topic."""
    return NOTES.get(topic.name.lower(), f"Nothing about {topic.name}. There is: {', '.join(NOTES)}.")


llm: LLMAgent[None, str] = LLMAgent(
    model_from_settings(),
    name="researcher",
    instructions=(
        "You answer questions about work that outlives its worker. Say in one sentence what you look up next, and"
        " look it up, one topic at a time, until you have seen every topic. Then answer in at most 120 words."
    ),
)
durable = Durable(llm, tools=[look_up])

researcher = Agent("researcher", owner="platform", description="Finds things out with an LLM.", calls=[look_up])


@researcher.handles("research", attempts=5, timeout_s=300)
async def research(question: Question, ctx: Context) -> str:
    """Find something out; what the model says is streamed."""
    return (await durable.run(question.text, ctx)).output
