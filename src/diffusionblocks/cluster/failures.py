"""What became of jobs that a sweep could not finish: a line each, with the cause and the mend.

Snakemake's log holds all there is to know, spread over screens: it names the rule, the scheduler's
answer stands in a message or at the end of the job's own log, which Snakemake prints along.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AGAIN = "then start the same command again"
PROFILE = "of the profile's config.yaml"


@dataclass(frozen=True)
class Cause:
    """One way for a job to fail.

    Attributes:
        pattern: found in what was logged of the job.
        text: what became of the job.
        mend: what the user can do; ``{rule}`` stands for the job's rule.
    """

    pattern: str
    text: str
    mend: str


#: The first that is found decides: a scheduler's limits come before the state they lead to.
CAUSES = (
    Cause(
        r"[Ii]nvalid partition",
        "the partition it was sent to does not exist",
        "name one that `sinfo` lists in partitions.yaml, or as slurm_partition of {rule} under "
        f"set-resources {PROFILE}, {AGAIN}",
    ),
    Cause(
        r"Requested time limit is invalid",
        "it asks for more time than its partition allows",
        f"lower runtime of {{rule}} under set-resources {PROFILE}, or choose a longer "
        f"partition in partitions.yaml, {AGAIN}",
    ),
    Cause(
        r"Requested node configuration is not available|Memory required by task is not available",
        "it asks for more memory, cores or GPUs than any node of its partition has",
        f"choose larger nodes in partitions.yaml, or a smaller batch or more blocks, {AGAIN}",
    ),
    Cause(
        r"'TIMEOUT'|'DEADLINE'|DUE TO TIME LIMIT",
        "it outlived its time limit",
        f"raise runtime of {{rule}} under set-resources {PROFILE}, {AGAIN}; training goes on "
        "from its last checkpoint",
    ),
    Cause(
        r"'OUT_OF_MEMORY'|[Ee]xceeded job memory limit|exceeded memory limit|oom[_-]kill",
        "it outgrew its memory limit",
        f"raise mem_mb of {{rule}} under set-resources {PROFILE}, {AGAIN}",
    ),
    Cause(
        r"'NODE_FAIL'|'BOOT_FAIL'|DUE TO NODE FAILURE",
        "its node went down",
        f"look at the node with `sinfo -R`, {AGAIN}; training goes on from its last checkpoint",
    ),
    Cause(
        r"'CANCELLED|'REVOKED'|'PREEMPTED'|CANCELLED AT",
        "it was cancelled",
        "start the same command again; training goes on from its last checkpoint",
    ),
)


@dataclass(frozen=True)
class Failure:
    """A job that failed at least once.

    Attributes:
        name: rule and log's name, which says run and part.
        reason: cause and mend.
        finished: whether a later attempt succeeded.
    """

    name: str
    reason: str
    finished: bool


#: Snakemake does not pass on what a scheduler answers to a group of jobs.
SILENT = (
    "it failed and its log does not say why; ask `squeue -t all` or `sacct`, and if it is one of a "
    f"group that asks for too much take its rule out of groups {PROFILE}, {AGAIN}"
)

#: Characters of a log that are read, from its end.
LAST = 20_000
#: Where what was logged of a failed job begins, and where at the latest it ends.
BEGINS = re.compile(r"^ *(?:message: )?Error in (?:rule|group) [\w-]+:?$", re.MULTILINE)
ENDS = re.compile(
    r"^(?:Trying to restart job|Select jobs to execute|Finished jobid|Exiting because|\[\w{3} )",
    re.MULTILINE,
)
FAULT = re.compile(r"^ *diffusionblocks: (.+)$", re.MULTILINE)


def _sections(log: str) -> list[tuple[int, str]]:
    """Place and text of everything logged of failed jobs."""
    found = []
    for begin in BEGINS.finditer(log):
        end = ENDS.search(log, begin.end())
        found.append((begin.start(), log[begin.start() : end.start() if end else len(log)]))
    return found


def _jobs(section: str) -> dict[str, tuple[str, str]]:
    """Number → (rule, name) of the jobs that a section is about."""
    rules = re.split(r"^ *(?:Error in )?rule (\w+):$", section, flags=re.MULTILINE)
    jobs = {}
    for rule, text in zip(rules[1::2], rules[2::2], strict=True):
        number = re.search(r"^ *jobid: (\d+)$", text, re.MULTILINE)
        log = re.search(r"^ *log: ([^\s,]+)", text, re.MULTILINE)
        stem = Path(log[1]).stem if log else ""
        if number:
            jobs[number[1]] = (rule, rule if stem in ("", rule) else f"{rule} {stem}")
    return jobs


def _reason(section: str, rule: str) -> str | None:
    """Cause and mend, or None where the section names neither."""
    # A command line of the scheduler or the shell repeats names, not causes.
    for cause in CAUSES:
        if re.search(cause.pattern, section):
            return f"{cause.text}; {cause.mend.format(rule=rule)}"
    fault = FAULT.search(section)
    return fault[1] if fault else None


def last_words(path: str) -> str:
    """The end of a log; "" where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")[-LAST:]
    except OSError:
        return ""


def _with_logs(section: str, read: Callable[[str], str]) -> str:
    """A section, then what stands in the logs that it names: Snakemake shows the first at most."""
    named = re.findall(r"^ *log: (.+?)(?: \(check log|$)", section, re.MULTILINE)
    files = [path for line in named for path in line.split(", ")]
    return "\n".join([section, *(read(path) for path in files)])


def failures(log: str, read: Callable[[str], str] = last_words) -> list[Failure]:
    """Every job that failed, in the order of their last failures.

    Args:
        log: Snakemake's own log of a whole run.
        read: from a log's path to its end.
    """
    found: dict[str, Failure] = {}
    for place, section in _sections(log):
        words = _with_logs(section, read)
        for number, (rule, name) in _jobs(section).items():
            done = re.search(rf"^Finished jobid: {number} \(", log[place:], re.MULTILINE)
            known = found.get(number)
            # Snakemake lists a group's jobs again one by one, without the scheduler's answer.
            reason = _reason(words, rule) or (known.reason if known else None)
            found.pop(number, None)
            found[number] = Failure(name, reason or SILENT, bool(done))
    return list(found.values())


def summary(log: str) -> list[str]:
    """What to tell the user at the end of a run: a line for every job that failed."""
    lines = []
    for failure in failures(log):
        if failure.finished:
            cause = failure.reason.split(";")[0]
            lines.append(f"recovered: {failure.name}: {cause}; a later attempt finished it")
        else:
            lines.append(f"failed: {failure.name}: {failure.reason}")
    return lines
