"""The loop of a peer: take a delivery, look for its record, run the handler, commit, relay, settle."""
