"""slurm.conf of the private Slurm, and what goes into it (pure)."""

from __future__ import annotations

import dataclasses
import re

from hpk import paths

#: Lines of cgroup.conf for the versions that want to be told that there is nothing for them to manage.
CGROUP_CONF = "CgroupPlugin=disabled\n"
_ONE_ADDRESS = "NoInAddrAny,NoCtldInAddrAny"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What slurm.conf says of this machine and of the user."""

    host: str
    """Short host name: Slurm compares it with its own idea."""
    address: str
    """Loopback address for everything that listens."""
    user: str
    cpus: int
    memory_mb: int
    slurmctld_port: int
    slurmd_port: int


def default_cpus(real: int) -> int:
    """CPUs to declare on a machine of ``real`` ones.

    More than there are: the control plane's job holds one, mostly idle, and each Pod at least one; a laptop of two would be full
    at once. The kernel shares the real ones among them.
    """
    return max(4 * real, 8)


def memory_mb(meminfo: str) -> int:
    """90 % of the memory in the text of /proc/meminfo, in MB as slurm.conf counts (MiB)."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.M)
    return max(256, int(int(match.group(1)) / 1024 * 0.9)) if match else 1024


def default_memory_mb(machine: Machine) -> int:
    """Memory per CPU of a job that asks for none: a fair share, within what a small program needs and what a large one may take."""
    return max(128, min(1024, machine.memory_mb // machine.cpus))


def version(text: str) -> tuple[int, int]:
    """(year, month) of what ``slurmctld -V`` prints; a version that cannot be read counts as a new one."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else (99, 0)


def needs_cgroup_conf(release: tuple[int, int]) -> bool:
    """From 23.11 on slurmd looks for cgroups that an ordinary user does not have, unless it is told not to; 22.05 knows no such line."""
    return release >= (23, 11)


def slurm_conf(private: paths.SlurmDir, machine: Machine) -> str:
    """Return slurm.conf(5). Everything runs as the user, listens on loopback, and is known to each other by a munge key of its own."""
    host = machine.host
    cores = f"CPUs={machine.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={machine.cpus} ThreadsPerCore=1"
    return f"""\
# Private single-user Slurm, written by `hpk slurm up`: changes are overwritten.
ClusterName=hpk-{machine.user}
SlurmctldHost={host}({machine.address})
SlurmUser={machine.user}
SlurmdUser={machine.user}
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again starts after this time (default: 120 s).
AuthInfo=socket={private.munge_socket},cred_expire=10
SlurmctldPort={machine.slurmctld_port}
SlurmdPort={machine.slurmd_port}
# Bind to the address of the host name, which is a loopback address for these daemons; the default is all addresses.
CommunicationParameters={_ONE_ADDRESS}

StateSaveLocation={private.state}
SlurmdSpoolDir={private.spool}
SlurmctldPidFile={private.pid("slurmctld")}
SlurmdPidFile={private.pid("slurmd")}
SlurmctldLogFile={private.log("slurmctld")}
SlurmdLogFile={private.log("slurmd")}

# What needs no privileges.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# Memory limits by looking every five seconds; shared pages count once.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=UsePss,OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={private.finished_jobs}

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Batch jobs start at once (default: up to 3 s later), and a long queue is looked at as a whole.
SchedulerParameters=batch_sched_delay=0,sched_interval=5,default_queue_depth=1000
# Declared CPUs count, real ones or not.
SlurmdParameters=config_overrides
# The machine may have been switched off: its return is no accident.
ReturnToService=2
MaxJobCount=50000
MinJobAge=300
KillWait=30

NodeName={host} NodeHostname={host} NodeAddr={machine.address} {cores} RealMemory={machine.memory_mb} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE DefMemPerCPU={default_memory_mb(machine)} State=UP
"""


def client_conf(text: str) -> str:
    """Return slurm.conf for commands outside of jobs, where the host name is no loopback address.

    srun listens for its tasks, and under NoInAddrAny would do so where the daemons, which are at loopback, do not find it.
    """
    return text.replace(_ONE_ADDRESS, "NoCtldInAddrAny")


def hosts(original: str, names: list[str]) -> str:
    """Return /etc/hosts with ``names`` of this machine at loopback and at no other address."""
    lines = ["127.0.0.1 localhost " + " ".join(names)]
    for line in original.splitlines():
        address, *others = line.partition("#")[0].split() or [""]
        others = [name for name in others if name not in names]
        if others:
            lines.append(f"{address} {' '.join(others)}")
    return "\n".join(lines) + "\n"
