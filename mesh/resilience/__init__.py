"""Rules for when things go wrong: pure functions of numbers and times."""
