"""Training: one step, its state, its schedule, its loop."""
