"""What a peer offers the server, at which bid and in which lane: pure functions of numbers."""
