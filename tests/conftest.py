"""Fixtures for every test: a real server, and a mesh of its own for each."""

from mesh.testing.fixtures import mesh, nats_server, nats_url, settings

__all__ = ["mesh", "nats_server", "nats_url", "settings"]
