# What a scheduler is told of every job; a run on this machine alone asks for none of it.
import json
import os
import shutil
import subprocess

NEEDS = Path(f"{RESULTS}/cluster/needs.json")


def needs():
    """What the jobs need, planned once a sweep and kept in a file, in a process of its own."""
    wanted = section_hash("data", "network", "training", "compute", "sweep")
    if not NEEDS.is_file() or json.loads(NEEDS.read_text())["identity"] != wanted:
        command = f"{CLI} cluster needs {SELECT} --output {NEEDS}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            raise WorkflowError(done.stderr.strip())
    return json.loads(NEEDS.read_text())


def memory(wildcards, attempt):
    """MiB of memory of a job; another attempt gets that much more."""
    if not (workflow.non_local_exec or workflow.global_resources.get("mem_mb")):
        return 0
    found = needs()
    part = wildcards.get("part")
    return attempt * (found["training"][wildcards.run][part] if part else found["others"])


def gpus_here():
    """How many GPUs jobs on this machine may use; None where the driver cannot be asked."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([card for card in visible.split(",") if card])
    if not shutil.which("nvidia-smi"):
        return None
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return len(listed.splitlines())


# A job that waits for a card would hold a core meanwhile: no more jobs here than there are cards.
if GPU and not workflow.non_local_exec and (cards := gpus_here()):
    workflow.global_resources.setdefault("gpu", cards)
