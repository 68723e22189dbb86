"""Beyond one machine: what jobs need, how long a sweep takes on N GPUs, what a failure means."""
