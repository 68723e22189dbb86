"""Memory that a scheduler should reserve for the jobs of a sweep, from the memory planner.

A job's host memory is that of its programs (Python, PyTorch, the workflow engine that started it)
and, on the CPU, the training step's peak. On a GPU the step lives in the GPU's memory.
"""

from collections.abc import Callable
from typing import Any

from ..config import Preset, RunConfig, digest
from ..memory.formula import of_depth
from ..memory.plan import plan
from ..memory.point import DATA_IMAGES, Point
from ..parts import part_of

MIB = 2**20
#: MiB of a job's programs and files before its first step. Measured resident sets of smoke jobs
#: stay below half of the first; a CUDA context keeps about 3 GiB of the host.
PROGRAMS = {"cpu": 1500, "cuda": 6000}


def part_point(preset: Preset, run: RunConfig, part_name: str, batch_size: int) -> Point:
    """The training step of one process of one training job, for the memory planner.

    A block alone is a network of its own depth, so it is planned as one.

    Args:
        batch_size: examples of the process's step.
    """
    part = part_of(run, part_name)
    training = run.training.model_copy(update={"batch_size": batch_size})
    run = run.model_copy(update={"training": training})
    point = Point(preset.description, run, DATA_IMAGES[preset.data.name])
    return of_depth(point, part.depth) if len(part.blocks) == 1 else point


def part_peak(preset: Preset, run: RunConfig, part_name: str) -> int:
    """Planned peak in bytes of each process of one training job."""
    share = run.training.batch_size // run.compute.processes
    return plan(part_point(preset, run, part_name, share)).peak


def training_peaks(
    preset: Preset, peak: Callable[[Preset, RunConfig, str], int] = part_peak
) -> dict[str, dict[str, int]]:
    """Planned peak in bytes of every training job: run → part → bytes.

    Jobs that differ in seed, partition or overlap only are planned once.
    """
    known: dict[str, int] = {}
    found: dict[str, dict[str, int]] = {}
    for run in preset.runs():
        for name in run.parts:
            part = part_of(run, name)
            key = str((part.depth, [list(r or ()) for r in part.layers.values()]))
            if key not in known:
                known[key] = peak(preset, run, name)
            found.setdefault(run.name, {})[name] = known[key]
    return found


def identity(preset: Preset) -> str:
    """Changes when a setting does that decides what jobs need."""
    sections = ("data", "network", "training", "compute", "sweep")
    return digest([getattr(preset, name).model_dump(mode="json") for name in sections])


def needs(preset: Preset) -> dict[str, Any]:
    """What to reserve, ready for JSON.

    Returns:
        ``training``: host memory in MiB of every training job, run → part;
        ``others``: host memory in MiB of every other job that loads PyTorch (it holds a whole
        network, without gradients, moments or a graph: no more than the largest training job).
    """
    peaks = training_peaks(preset)
    on_gpu = preset.compute.device == "cuda"
    programs = PROGRAMS["cuda" if on_gpu else "cpu"]

    def host(nbytes: int, processes: int = 1) -> int:
        return processes * (programs + (0 if on_gpu else -(-nbytes // MIB)))

    largest = max(max(parts.values()) for parts in peaks.values())
    return {
        "identity": identity(preset),
        "training": {
            run: {part: host(n, preset.compute.processes) for part, n in parts.items()}
            for run, parts in peaks.items()
        },
        "others": host(largest),
    }
