"""Paper scale: what a sweep costs, running it in short parts, and results kept as a reference."""
