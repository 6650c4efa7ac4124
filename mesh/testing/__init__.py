"""For authors' tests and ours: a real server, peers in this process, and waiting for conditions.

    from mesh.testing.fixtures import mesh, nats_server, nats_url, settings  # in conftest.py

    async def test_it_doubles(mesh, settings):
        async with hosting(agent, settings=settings):
            assert await (await mesh.submit(double, 21)).result() == 42

`fixtures` needs pytest and pytest-asyncio. `fleet`, `faults` and their kin, `network`, `kill_points` and `history` are
what the fault suite is made of; `chaos` puts them together to game days, which `mesh chaos` plays.
"""

from mesh.testing.hosting import eventually, hosting

__all__ = ["eventually", "hosting"]
