"""The test bed: a virtual HPC cluster on one machine, with real Slurm, munge, accounting and Apptainer.

``python -m tests.testbed up`` (as root) makes a login host and compute hosts c1..cN. Each host is a process tree in network, UTS,
IPC, mount, pid and cgroup namespaces of its own, with its own address on a switch of the bed; they share the machine's root file
system and the bed's /home. Nothing leaves the bed: there is no route out. ``$HPK_TESTBED`` names the bed; beds with different names
do not see one another, although their host names and addresses are the same.

Modules: layout (names, addresses, paths) < commands (processes) < cgroups, switch, host (one virtual host) < slurm, registry, site
(what runs on the hosts) < bed (the whole) < __main__ (the command line). packages, apptainer, users, images prepare the machine.
"""

from tests.testbed.bed import Bed
from tests.testbed.commands import TestbedError

__all__ = ["Bed", "TestbedError"]
