"""A small sweep as a list of stages, run in real processes that a test may kill, starve or deceive.

Every job is forked from a process that has imported PyTorch already and has used none of it, so a
job costs a fraction of a second and still is a process of its own. To put another stage (or another
task) under every fault, add it to :func:`stages`.
"""

import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sklearn.datasets  # noqa: F401
import yaml
from PIL import Image  # noqa: F401

from diffusionblocks import jobs  # noqa: F401  (imported once, before any fork)
from diffusionblocks.cli import main
from diffusionblocks.evaluation import scoring, validation  # noqa: F401
from diffusionblocks.report import tables  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PRESET = {
    "description": "a preset for faults",
    "task": "images",
    "data": {"name": "digits"},
    "network": {"layers": 4, "width": 16, "heads": 2, "patch": 4},
    "training": {
        "iterations": 120,
        "batch_size": 16,
        "learning_rate": 2.0e-3,
        "ema_halflife_samples": 200,
        "checkpoint_every": 10,
    },
    "sampling": {"plain": {"samples": 200, "steps": 20, "batch_size": 40}},
    "evaluation": {
        "extractor": "digits_cnn",
        "reference_samples": 200,
        "validation_bands": 4,
        "validation_samples": 48,
    },
    "compute": {"device": "cpu", "threads": 1},
    "sweep": {"seeds": [0], "variants": [{"method": "blockwise_independent", "blocks": 2}]},
}
RUN = "independent-B2-equal_mass-overlap0-s0"
#: Keys of a record and columns of a table that say when, how fast and how large, not what.
MEASURED = re.compile(
    r"seconds|_per_second|peak_|^time$|^commit$|^clean$|provenance|resident|^note$|fixed_"
)
#: Longest that a job of this sweep may take, in seconds: a hang is a fault as well.
PATIENCE = 600.0


@dataclass(frozen=True)
class Stage:
    """One job: what it is called with, and the files that stand when it is done."""

    name: str
    arguments: list[str]
    outputs: list[Path]


@dataclass
class Done:
    """How a process ended: exit code, or minus the signal; what it printed; how long it took."""

    code: int
    text: str
    seconds: float

    @property
    def line(self) -> str:
        """The one line that the user is meant to read."""
        lines = [x for x in self.text.splitlines() if x.startswith("diffusionblocks: ")]
        assert len(lines) == 1 and "Traceback" not in self.text, self.text[-2000:]
        return lines[0]


class Process:
    """A forked job.

    Args:
        argv: of the command line.
        log: where it prints.
        before: called in the new process before the job starts.
    """

    def __init__(self, argv: list, log: Path, before: Callable[[], None] = lambda: None):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.began = log, time.monotonic()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run([*map(str, argv)], before)

    def _run(self, argv: list[str], before: Callable[[], None]) -> None:
        code = 1
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            # pytest has put its own objects in their place.
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            before()
            code = main(argv)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        finally:
            os._exit(code)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Done:
        deadline = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.kill()
                os.waitpid(self.pid, 0)
                raise AssertionError(f"a job hangs: {self.log.read_text()[-500:]}")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Done(code, text, time.monotonic() - self.began)


def stages(preset: Path, root: Path, shared: Path | None = None) -> list[Stage]:
    """The jobs of the sweep, in order.

    Args:
        preset: its YAML file.
        root: folder of everything that is written.
        shared: where data and extractor lie, if not under root.
    """
    shared = root if shared is None else shared
    data, cnn = shared / "data", shared / "data/digits_cnn.safetensors"
    folder, cache = root / "runs" / RUN, root / "cache"
    manifest, samples = folder / "manifest.json", folder / "samples-plain.safetensors"
    scores, floor = folder / "scores.json", root / "data/floor.json"
    select = ["--preset", str(preset)]
    score = [*select, "--data", data, "--cache", cache, "--extractor-weights", cnn]

    def train(part: str) -> Stage:
        output, state = folder / f"{part}.safetensors", root / "state" / part
        arguments = ["train", *select, "--run", RUN, "--part", part, "--data", data]
        outputs = [output, folder / f"{part}-curve.csv", folder / f"{part}.json"]
        return Stage(f"train {part}", [*arguments, "--output", output, "--state", state], outputs)

    arrays = [data / f"{s}_{k}.npy" for s in ("train", "test") for k in ("images", "labels")]
    tables_ = "scores floors validation_loss training curves sampling setting".split()
    return [
        Stage("data", ["data", *select, "--output", data], [*arrays, data / "dataset.json"]),
        Stage(
            "extractor",
            ["extractor", *select, "--data", data, "--output", cnn],
            [cnn, cnn.with_suffix(".json")],
        ),
        train("block0"),
        train("block1"),
        Stage(
            "assemble",
            ["assemble", *select, "--run", RUN, "--parts", folder, "--output", manifest],
            [manifest],
        ),
        Stage(
            "sample",
            ["sample", *select, "--manifest", manifest, "--sampling", "plain",
             "--output", samples],
            [samples, samples.with_suffix(".json")],
        ),
        Stage("floor", ["floor", *score, "--output", floor], [floor]),
        Stage(
            "score",
            ["evaluate", *score, "--manifest", manifest, "--samples", f"plain={samples}",
             "--output", scores],
            [scores],
        ),
        Stage(
            "tables",
            ["tables", *select, "--results", root, "--output", root / "tables"],
            [root / f"tables/{t}.csv" for t in tables_],
        ),
    ]  # fmt: skip


def write_preset(path: Path, **changes: dict) -> Path:
    """The preset as a file; changes replace keys of its sections."""
    tree = {k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in PRESET.items()}
    path.write_text(yaml.safe_dump(tree))
    return path


def _measured_out(value):
    """A record without what differs between two runs of the same thing."""
    if isinstance(value, dict):
        return {k: _measured_out(v) for k, v in value.items() if not MEASURED.search(k)}
    return [_measured_out(v) for v in value] if isinstance(value, list) else value


def content(path: Path) -> str:
    """Digest of what a file says; times, speeds and memory left out."""
    if path.suffix == ".json":
        kept = json.dumps(_measured_out(json.loads(path.read_text())), sort_keys=True).encode()
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if not MEASURED.search(r.get("key") or "")]
        kept = json.dumps([_measured_out(row) for row in rows]).encode()
    else:
        kept = path.read_bytes()
    return hashlib.sha256(kept).hexdigest()


@dataclass
class Sweep:
    """Jobs on one folder, and the contents they should have.

    Attributes:
        expected: stage → output's name → digest, from a sweep that met no fault.
    """

    preset: Path
    root: Path
    shared: Path | None = None
    expected: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        return stages(self.preset, self.root, self.shared)

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    def start(self, name: str, before=lambda: None, log: Path | None = None) -> Process:
        log = log or self.root.parent / f"log-{name.replace(' ', '-')}.txt"
        return Process(self.stage(name).arguments, log, before)

    def run(self, name: str, before=lambda: None, log: Path | None = None) -> Done:
        return self.start(name, before, log).wait()

    def finish(self) -> None:
        """Run every job whose outputs are not all there, in order, as the workflow would."""
        for stage in self.stages:
            if not all(path.exists() for path in stage.outputs):
                done = self.run(stage.name)
                assert done.code == 0, (stage.name, done.text[-2000:])

    def contents(self, name: str) -> dict[str, str]:
        """Output's name → digest of what is there."""
        return {p.name: content(p) for p in self.stage(name).outputs if p.exists()}

    def different(self, name: str) -> list[str]:
        """Outputs that stand and do not say what an undisturbed job writes."""
        found = self.contents(name)
        return [output for output in found if found[output] != self.expected[name][output]]

    def lost(self, name: str) -> int:
        """Outputs of a stage that are missing or differ."""
        missing = self.expected[name].keys() - self.contents(name).keys()
        return len(missing) + len(self.different(name))

    def copy(self, root: Path) -> "Sweep":
        """The same sweep, in another folder."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Sweep(self.preset, root, self.shared, self.expected)

    def remove(self, name: str) -> None:
        """As if a stage had never run."""
        for path in self.stage(name).outputs:
            path.unlink(missing_ok=True)
        if name.startswith("train "):
            shutil.rmtree(self.root / "state" / name.split()[1], ignore_errors=True)
        if name in ("floor", "score"):
            shutil.rmtree(self.root / "cache", ignore_errors=True)


def halves(root: Path) -> list[Path]:
    """Half-written files under a folder; they never bear a name that anything reads."""
    return [*root.rglob("*.part"), *root.rglob(".tmp*")]


def moments(seed: str, count: int, longest: float) -> list[float]:
    """Random moments of a job, in seconds; DIFFUSIONBLOCKS_FAULT_SEED chooses others."""
    rng = random.Random(f"{os.environ.get('DIFFUSIONBLOCKS_FAULT_SEED', '0')}/{seed}")
    return [rng.uniform(0, longest) for _ in range(count)]
