"""Fixtures for every test: a real server, and a mesh of its own for each.

Hypothesis has no limit on one example's time, since machines stall, and its failures come with a blob.
"""

import hypothesis

from mesh.testing.fixtures import mesh, nats_server, nats_url, settings

__all__ = ["mesh", "nats_server", "nats_url", "settings"]

hypothesis.settings.register_profile("mesh", deadline=None, print_blob=True)
hypothesis.settings.load_profile("mesh")
