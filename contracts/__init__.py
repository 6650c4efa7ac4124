"""What peers say to each other: tasks, outcomes, events, cards, and the subjects they travel on.

Structs and pure functions over msgspec alone. Nothing here reads a clock, a socket or the environment.
"""
