# The validated preset, its runs, and what every rule says to the command line.
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from diffusionblocks.cluster.failures import summary
from diffusionblocks.config import LATENT_SETS, digest, load_preset
from diffusionblocks.errors import UserError
from diffusionblocks.locks import hold


def refuse(error):
    """One line and exit code 2, without a traceback through the workflow engine."""
    print(f"diffusionblocks: {error}", file=sys.stderr, flush=True)
    os._exit(2)


PRESET_NAME = str(config.get("preset", "default"))
RESULTS = f"{config.get('results', 'results')}/{PRESET_NAME}"

try:
    try:
        OVERRIDES = shlex.split(str(config.get("set", "")))
    except ValueError as error:
        raise UserError(f"set={config['set']!r}: {error}; close the quotation") from None
    if unknown := set(config) - {"preset", "set", "results"}:
        raise UserError(
            f"unknown --config key {min(unknown)}; expected preset=NAME, set='KEY=VALUE …' "
            "or results=FOLDER"
        )
    if not re.fullmatch(r"[\w./][\w./-]*", RESULTS, re.ASCII):
        raise UserError(
            f"results folder {RESULTS!r} is not made of letters, digits, _ . / and - or begins "
            "with -; correct it"
        )
    if not re.fullmatch(r"\w+", PRESET_NAME, re.ASCII):
        raise UserError(
            f"preset name {PRESET_NAME!r} is not made of letters, digits and _; correct it"
        )
    PRESET = load_preset(
        Path(workflow.basedir) / f"workflow/config/presets/{PRESET_NAME}.yaml", OVERRIDES
    )
except UserError as error:
    refuse(error)

RUNS = {run.name: run for run in PRESET.runs()}
# With --sdm conda a job's own python comes first on PATH; otherwise the one that runs Snakemake.
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if IN_CONDA else shlex.quote(sys.executable)
LIBRARY = shlex.quote(str(Path(workflow.basedir) / "src"))
CLI = f"PYTHONPATH={LIBRARY} {PYTHON} -m diffusionblocks"
SELECT = " ".join(
    ["--preset", shlex.quote(PRESET_NAME)]
    + (["--set", *map(shlex.quote, OVERRIDES)] if OVERRIDES else [])
)
# Open files that hold the lock on the results for as long as this process lives.
LOCKS = []
# A job that the kernel kills, for want of memory as a rule, cannot say so itself.
shell.prefix(
    "set -euo pipefail; trap 'code=$?; if [ $code -gt 128 ]; then echo "
    '"diffusionblocks: a job was killed by signal $((code - 128)); if memory was short, lower '
    'training.batch_size or run fewer jobs at once (--cores), then run the same command again" '
    ">&2; fi' EXIT; "
)
THREADS = PRESET.compute.threads
GPU = 1 if PRESET.compute.device == "cuda" else 0
# Processes of a training job that share each of its batches.
PROCESSES = PRESET.compute.processes
TORCHRUN = f"-m torch.distributed.run --standalone --nproc-per-node {PROCESSES}"
TRAIN_CLI = CLI if PROCESSES == 1 else CLI.replace("-m", f"{TORCHRUN} -m", 1)


def section_hash(*sections):
    """Changes when one of the preset's sections does: a rule reruns for what it reads only."""
    return digest([getattr(PRESET, name).model_dump(mode="json") for name in sections])


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    part=r"block\d+|all",
    sampling="|".join(map(re.escape, PRESET.sampling)),
