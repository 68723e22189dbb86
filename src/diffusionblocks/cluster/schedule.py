"""How long jobs take on N workers: each free worker takes the most urgent job that is ready.

This is what the workflow engine's greedy scheduler does. The finish is never later than
work / N + critical path (Graham 1966), nor earlier than the larger of the two.
"""

import heapq
from collections.abc import Mapping, Sequence

from .dag import Job


def critical_path(jobs: Sequence[Job], seconds: Mapping[str, float]) -> float:
    """Seconds of the longest chain of jobs that need each other: the time on any number of GPUs.

    Args:
        jobs: every job after those it needs.
        seconds: of every job by name.
    """
    done: dict[str, float] = {}
    for job in jobs:
        done[job.name] = max((done[n] for n in job.needs), default=0.0) + seconds[job.name]
    return max(done.values(), default=0.0)


def finish(jobs: Sequence[Job], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until the last job ends, a worker doing one job at a time.

    Args:
        jobs: those needed are among them.
        seconds: of every job by name.
        workers: how many GPUs or cores.
    """
    place = {job.name: i for i, job in enumerate(jobs)}
    waits = {job.name: len(job.needs) for job in jobs}
    wanted_by: dict[str, list[Job]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.needs:
            wanted_by[name].append(job)

    def rank(job: Job) -> tuple[int, int]:
        return (-job.urgent, place[job.name])

    ready = [(rank(job), job.name) for job in jobs if not job.needs]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            name = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds[name], name))
        now, name = heapq.heappop(running)
        for job in wanted_by[name]:
            waits[job.name] -= 1
            if not waits[job.name]:
                heapq.heappush(ready, (rank(job), job.name))
    return now
