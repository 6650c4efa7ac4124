"""A mesh on one machine: the embedded nats-server, and how others in the same folder find it."""
