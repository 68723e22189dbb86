"""How long a job takes to start: the interpreter, PyTorch and the suite, in a fresh process."""

import subprocess
import sys
import time


def job_start(clock=time.monotonic) -> float:
    """Seconds of the second of two starts; the first may read its files from a cold disk."""
    command = [sys.executable, "-c", "import diffusionblocks.jobs"]
    seconds = 0.0
    for _ in range(2):
        began = clock()
        subprocess.run(command, check=True)
        seconds = clock() - began
    return seconds
