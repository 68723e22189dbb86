"""The verb ``cluster`` of the command line: needs, measure, plan."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Preset, RunConfig
from ..errors import UserError


def run_needs(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``cluster needs``."""
    from ..files import write_json
    from .needs import needs

    write_json(a.output, needs(read_preset(a)))


def run_measure(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``cluster measure``."""
    from ..files import write_json
    from ..memory.measure import measure
    from .needs import part_point
    from .starts import job_start
    from .times import times_measured

    preset = read_preset(a)
    batch = a.batch or preset.training.batch_size
    for name, value in (("batch", batch), ("steps", a.steps)):
        if value < 1:
            raise UserError(f"--{name}: found {value}; expected at least 1")

    def step(run: RunConfig, part: str, batch_size: int) -> tuple[float, str]:
        points = [part_point(preset, run, part, batch_size)]
        compute = preset.compute
        (found,) = measure(points, compute.device, compute.threads, a.steps)
        return found["seconds_per_step"], found["device"]

    name = Path(a.preset).stem
    write_json(a.output, times_measured(preset, name, batch, step, job_start).model_dump())


def run_plan(a: argparse.Namespace, read_preset: Callable[..., Preset]) -> None:
    """Verb ``cluster plan``."""
    from .scale import report, rows, works
    from .times import read_times, times_of_results

    preset, name = read_preset(a), Path(a.preset).stem
    if min(a.gpus) < 1:
        raise UserError(f"--gpus: found {min(a.gpus)}; expected at least 1")
    results = a.results or Path("results") / name
    times = read_times(a.times) if a.times else times_of_results(preset, results)
    found = rows(preset, times, works(preset), sorted(set(a.gpus)))
    print(report(name, times, found), end="")
    if a.figures:
        import pandas as pd

        from ..report.cluster_figures import wall_time
        from ..report.style import save

        data = pd.DataFrame(found)
        save(wall_time(data, times.device, times.source), data, a.figures, f"{name}_scale")


def add_cluster(verbs: Any, read_preset: Callable[[argparse.Namespace], Preset]) -> None:
    """Add the verb ``cluster`` to the command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        read_preset: from the command line's namespace to its preset.
    """
    text = "plan a sweep on many GPUs, and what its jobs need"
    kinds = verbs.add_parser("cluster", help=text, description=text).add_subparsers(
        dest="kind", required=True
    )

    def kind(name: str, handler: Callable[..., None], text: str) -> argparse.ArgumentParser:
        p = kinds.add_parser(name, help=text, description=text)
        p.set_defaults(handler=partial(handler, read_preset=read_preset))
        p.add_argument("--preset", required=True, help="name or YAML file of a preset")
        p.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="replace single settings")
        return p

    p = kind("needs", run_needs, "memory that a scheduler should reserve for every job")
    p.add_argument("--output", type=Path, required=True)
    p = kind("measure", run_measure, "measure training steps here, for a plan")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--batch", type=int, help="examples a step; the preset's when absent")
    p.add_argument("--steps", type=int, default=3, help="timed steps, of which the fastest counts")
    p = kind("plan", run_plan, "jobs, GPU hours, memory and wall time on 1 to 1,024 GPUs")
    p.add_argument("--times", type=Path, help="what `cluster measure` wrote")
    p.add_argument("--results", type=Path, help="a sweep's results in its place; results/PRESET")
    p.add_argument("--gpus", nargs="+", type=int, default=[2**i for i in range(11)])
    p.add_argument("--figures", type=Path, help="folder for the chart and its data")
