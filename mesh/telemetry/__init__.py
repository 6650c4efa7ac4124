"""What a peer tells about itself: metrics and events."""
