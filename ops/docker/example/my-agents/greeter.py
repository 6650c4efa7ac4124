"""An agent in an image of its own (../Dockerfile)."""

from humanize import naturalsize

from mesh import Agent

agent = Agent("greeter", version="1.0.0", owner="platform", description="Greets, and says how large the greeting is.")


@agent.handles("greet", concurrency=4)
async def greet(name: str) -> str:
    """A greeting."""
    greeting = f"Hello, {name}!"
    return f"{greeting} ({naturalsize(len(greeting))})"
