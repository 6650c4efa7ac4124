"""Things that go wrong on purpose, each measured: what is lost, what is repeated, and for how long nothing moves."""
