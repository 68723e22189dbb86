"""Memory of a training step and of sampling: planned to the byte, measured, explained."""
