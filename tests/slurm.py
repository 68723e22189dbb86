"""A real Slurm for tests: controller, node and key service of their own on the loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel")
PACKAGES = ("slurm-wlm", "munge")
MEND = "no real Slurm here: as root, apt-get install " + " ".join(PACKAGES)
#: Seconds that a service has to start or to stop.
PATIENCE = 60

CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=10
KillWait=2
OverTimeLimit=0
MinJobAge=7200
SchedulerParameters=batch_sched_delay=0,sched_min_interval=200000
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:1
PartitionName=cpu Nodes={host} Default=YES MaxTime=1440 State=UP
PartitionName=gpu Nodes={host} MaxTime=1440 State=UP
"""


def find_slurm():
    """Whether a Slurm is installed; under CI it is installed first."""

    def complete():
        return all(map(_which, PROGRAMS))

    if not complete() and os.environ.get("CI") and os.getuid() == 0 and shutil.which("apt-get"):
        install = ["install", "-y", "--no-install-recommends", *PACKAGES]
        for command in (["update"], install):
            done = subprocess.run(["apt-get", "-q", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
    return complete() and os.getuid() == 0


def _which(program):
    """Services lie in folders that are not on every PATH."""
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _stop(pid_file):
    """End the process that a service noted, and no other."""
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    try:
        os.kill(pid, 15)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


class Slurm:
    """A running Slurm: its commands, and its node going down and up."""

    def __init__(self, folder, cores, memory):
        self.folder, self.cores, self.memory = folder, cores, memory
        # The step of a job drops SLURM_CONF: an srun that sets it stands first on PATH.
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }

    def write(self):
        """Configuration, key and wrapper."""
        controller, node = _free_ports(2)
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        values = {"host": host, "folder": self.folder, "controller": controller, "node": node}
        values |= {"cores": self.cores, "memory": self.memory}
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values))
        # A pretend GPU: Slurm counts and assigns it, PyTorch finds none.
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/null\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        srun = self.folder / "bin/srun"
        path = self.folder / "slurm.conf"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={path} exec {_which("srun")} "$@"\n')
        srun.chmod(0o755)

    def munged(self):
        """Start the key service."""
        f = self.folder
        self._start(
            "munged", "--force", f"--key-file={f}/munge.key", f"--socket={f}/munge.socket",
            f"--pid-file={f}/munged.pid", f"--log-file={f}/munged.log", f"--seed-file={f}/seed",
        )  # fmt: skip

    def slurmctld(self):
        """Start the controller, with nothing left over."""
        self._start("slurmctld", "-c")

    def slurmd(self):
        """Start the node."""
        self._start("slurmd")

    def _start(self, program, *arguments):
        command = [_which(program), *arguments]
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def run(self, *command, check=True):
        """Output of a Slurm command."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def wait(self, wanted, what):
        """Wait until a question is answered with something true; that answer."""
        for _ in range(PATIENCE * 5):
            if answer := wanted():
                return answer
            time.sleep(0.2)
        raise AssertionError(f"waited {PATIENCE} s in vain for {what}\n{self.logs()}")

    def wait_idle(self):
        """Wait until the node takes jobs."""
        self.wait(lambda: self.run("sinfo", "-h", "-o", "%t", check=False)[:4] == "idle", "a node")

    def jobs(self, *states):
        """Comment (rule and wildcards) of every job by id, in some states or in all."""
        chosen = ",".join(states) or "all"
        lines = self.run("squeue", "-h", "-t", chosen, "-o", "%i %k").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def asked(self, name):
        """MiB that the jobs asked for whose comment holds a name, first to last."""
        lines = self.run("squeue", "-h", "-t", "all", "-S", "i", "-o", "%m %k").splitlines()
        return [int(line.split("M ")[0]) for line in lines if name in line]

    def states(self):
        """State of every job by id."""
        lines = self.run("squeue", "-h", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def stop_node(self):
        """The node vanishes, and what it runs with it."""
        _stop(self.folder / "slurmd.pid")

    def logs(self):
        """Last words of the services."""
        return "\n".join(p.read_text()[-1500:] for p in sorted(self.folder.glob("*.log")))

    def stop(self):
        """Stop every service."""
        subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True, timeout=10)
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(self.folder / f"{name}.pid")


@contextmanager
def slurm(folder: Path, memory=None):
    """A Slurm with one node of at most two cores and a pretend GPU.

    Args:
        folder: for everything it writes; its path must be short, as a socket lies in it.
        memory: MiB that the node offers; half of the machine's when absent.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = Slurm(folder, min(2, os.cpu_count() or 1), memory or pages // 2**21)
    found.write()
    try:
        found.munged()
        found.slurmctld()
        found.slurmd()
        found.wait_idle()
        yield found
    finally:
        found.stop()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="slurm-") as place, slurm(Path(place)) as running:
        print(f"export SLURM_CONF={running.env['SLURM_CONF']}")
        print(f"export PATH={place}/bin:$PATH", flush=True)
        sys.stdin.read()
