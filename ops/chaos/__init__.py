"""What takes longer than `mesh chaos`: several game days, and their table."""
