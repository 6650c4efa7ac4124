"""How Hypothesis runs here: no limit on one example's time, since machines stall, and failures come with a blob."""

from hypothesis import settings

settings.register_profile("mesh", deadline=None, print_blob=True)
settings.load_profile("mesh")
