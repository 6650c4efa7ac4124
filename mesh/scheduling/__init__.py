"""What a peer offers the server and at which bid: pure functions of numbers."""
