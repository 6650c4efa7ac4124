"""What Prometheus needs to watch a mesh: where its peers are, what to record, when to call whom."""
