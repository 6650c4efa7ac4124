"""An agent in an image of its own (../Dockerfile), with a package that the mesh does not bring."""

import psutil

from mesh import Agent

agent = Agent("greeter", version="1.0.0", owner="platform", description="Greets from where it runs.")


@agent.handles("greet", concurrency=4)
async def greet(name: str) -> str:
    """A greeting, with the memory that is free here."""
    return f"Hello, {name}! {psutil.virtual_memory().available // 2**20} MiB are free here."
