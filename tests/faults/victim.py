"""A user's cluster on the test bed that is about to suffer: its processes, its disk, its Slurm commands, within reach of the faults."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import time
from typing import Any

from tests.e2e.cluster import Cluster, wait_for
from tests.faults import api
from tests.testbed import Bed, commands

#: Name of the state directory and of everything else in the user's home, so that another cluster of that user is left alone.
NAME = ".hpk-faults"
DISK_MIB = 48


class Victim(Cluster):
    """Slurm's commands on its kubelet's PATH can be made to fail, its Pods' folders lie on a small file system of their own."""

    def __init__(self, bed: Bed, user: str) -> None:
        super().__init__(bed, user)
        self.state = f"{self.home}/{NAME}"
        self._outside = f"{bed.layout.home}/{user}/{NAME}"  # the same, as the machine sees it
        self.client = self.api()

    def api(self, patience: float = 90.0) -> api.API:
        pid = self.bed.login.pid
        assert pid
        return api.API(f"{self._outside}/kubeconfig", pid, patience=patience)

    def run(self, *argv: str, **options: Any) -> Any:
        return self.bed.run("env", f"HPK_HOME={self.state}", f"KUBECONFIG={self.state}/kubeconfig", *argv, user=self.user, **options)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, *flags: str, timeout: float = 120) -> float:
        """A new cluster in a new state directory. Returns the seconds from sbatch to Ready."""
        self._unmount()  # of a run that was cut short
        self.run("rm", "-rf", self.state)
        for folder in ("", "/pods", "/runs", "/faults", "/bin"):
            self.run("mkdir", "-m", "700", f"{self.state}{folder}")
        self.run("sh", "-c", f"echo 'slurm: {{timeout: 6.0}}' > {self.state}/hpk.yaml")
        self._mount()
        for name in ("sbatch", "squeue", "scancel"):
            self.run("cp", f"{self.home}/hpk/tests/faults/slurm_command.sh", f"{self.state}/bin/{name}")
            self.run("chmod", "755", f"{self.state}/bin/{name}")
        begin = time.monotonic()
        script = f"""
export HPK_FAULT_FILE={self.state}/faults/point
PATH={self.state}/bin:$PATH
exec /usr/bin/sbatch --parsable --job-name=hpk-faults --comment="hpk control-plane {self.state}" "$@" {self.home}/hpk/slurm/hpk.sbatch
"""
        self.job = self.run("sh", "-c", script, "sh", *flags).stdout.strip().partition(";")[0]
        self.wait(lambda: self.report().get("ready"), timeout)
        return time.monotonic() - begin

    def _mount(self) -> None:
        """One small file system for the Pods' folders, seen by all hosts."""
        image = f"{self._outside}/pods.img"
        commands.run(["truncate", "-s", f"{DISK_MIB}M", image])
        entry = pwd.getpwnam(self.user)
        commands.run(["mkfs.ext4", "-q", "-m", "0", "-E", f"root_owner={entry.pw_uid}:{entry.pw_gid}", image])
        device = commands.run(["losetup", "--find", "--show", image]).stdout.strip()
        for host in self.bed.hosts:
            self.bed.root("mount", device, f"{self.state}/pods", host=host)
        self.bed.root("rmdir", f"{self.state}/pods/lost+found")
        self.bed.root("chmod", "700", f"{self.state}/pods")

    def _unmount(self) -> None:
        for host in self.bed.hosts:
            self.bed.root("umount", "-l", f"{self.state}/pods", host=host, check=False)
        image = self.outside("pods.img")
        if os.path.exists(image):
            for line in commands.run(["losetup", "--associated", image]).stdout.splitlines():
                commands.run(["losetup", "--detach", line.partition(":")[0]], check=False)

    def stop(self) -> None:
        self.client.close()
        jobs = [job["id"] for job in self.queue()]
        if jobs:
            self.run("scancel", *jobs, check=False)
        wait_for(lambda: not self.queue(), 90, self.explain)
        self._unmount()

    def explain(self) -> str:
        script = f"squeue -a; kubectl get pods 2>&1; cd {self.state} && tail -n 30 logs/kubelet.log ../slurm-{self.job}.out; cat faults/log"
        return self.run("sh", "-c", script, check=False).stdout[-12000:]

    # -- what there is -------------------------------------------------------------------------------------------------

    def outside(self, *parts: str) -> str:
        """A path in the state directory as the machine sees it; not below pods."""
        return os.path.join(self._outside, *parts)

    def report(self) -> dict[str, Any]:
        """run/cluster.json"""
        with contextlib.suppress(OSError, ValueError), open(self.outside("run", "cluster.json"), encoding="utf-8") as file:
            return json.load(file)
        return {}

    @property
    def host(self) -> str:
        """Host of the control plane."""
        return str(self.report()["host"])

    def component(self, name: str) -> tuple[int, str]:
        """Process id on its host and phase of a part of the control plane."""
        found = self.report()["components"][name]
        return int(found["pid"]), str(found["phase"])

    def signal(self, name: str, number: str = "KILL") -> int:
        """Signal a part of the control plane; returns its process id."""
        pid = wait_for(lambda: self.component(name)[0], 60)
        self.bed.root("kill", f"-{number}", str(pid), host=self.host)
        return pid

    def await_component(self, name: str, killed: int, timeout: float = 90.0) -> None:
        """Wait until a part that was killed works again."""
        self.wait(lambda: self.component(name)[1] == "ready" and self.component(name)[0] != killed, timeout)

    def queue(self) -> list[dict[str, str]]:
        """Jobs of this cluster that have not ended."""
        lines = self.run("squeue", "--me", "-h", "-o", "%i|%j|%T|%B|%k|%Z", timeout=60).stdout.splitlines()
        jobs = [dict(zip(("id", "name", "state", "host", "comment", "folder"), line.split("|"), strict=False)) for line in lines]
        return [job for job in jobs if job["id"] == self.job or job["name"] == "hpk-faults" or job["folder"].startswith(f"{self.state}/")]

    def jobs(self, *, accounting: bool = False) -> dict[str, list[str]]:
        """All jobs, ended ones too, by the UID of the Pod. Waits while slurmctld is away."""
        if accounting:
            argv = ["sacct", "-X", "-n", "-P", "--duplicates", "-S", "now-6hours", "-o", "JobIDRaw,WorkDir,Comment"]
        else:
            argv = ["squeue", "--me", "-h", "-t", "all", "-o", "%i|%Z|%k"]
        done = wait_for(lambda: (found := self.run(*argv, check=False)).returncode == 0 and found, 120)
        by_uid: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            job_id, folder, comment = line.split("|")
            if folder.startswith(f"{self.state}/pods/") and comment.startswith("hpk uid="):
                by_uid.setdefault(comment.removeprefix("hpk uid="), []).append(job_id)
        return by_uid

    # -- what can be done to it ----------------------------------------------------------------------------------------

    def arm(self, point: str) -> None:
        """Let the kubelet die at its next passage of a named point."""
        self._order("point", point)

    def armed(self) -> bool:
        return os.path.exists(self.outside("faults", "point"))

    def command_fault(self, command: str, fault: str) -> None:
        self._order(command, fault)

    def command_faulty(self, command: str) -> bool:
        return os.path.exists(self.outside("faults", command))

    def faults_seen(self) -> int:
        """Calls of Slurm's commands so far that had a fault."""
        try:
            with open(self.outside("faults", "log"), encoding="ascii") as file:
                return len(file.readlines())
        except FileNotFoundError:
            return 0

    def disarm(self) -> None:
        for name in ("point", "sbatch", "squeue", "scancel"):
            self.command_well(name)

    def command_well(self, command: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.outside("faults", command))

    def _order(self, name: str, text: str) -> None:
        temporary = self.outside("faults", f".{name}")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text + "\n")
        entry = pwd.getpwnam(self.user)
        os.chown(temporary, entry.pw_uid, entry.pw_gid)
        os.rename(temporary, self.outside("faults", name))

    def fill_disk(self) -> None:
        """No byte is left for the Pods' folders."""
        path = f"{self.state}/pods/.fill"
        script = f"dd if=/dev/zero of={path} bs=64k 2>/dev/null; dd if=/dev/zero bs=512 >>{path} 2>/dev/null; sync -f {path}"
        self.bed.root("sh", "-c", f"{script}; ! dd if=/dev/zero of={path}2 bs=1 count=1 2>/dev/null")
        self.bed.root("rm", "-f", f"{path}2")

    def empty_disk(self) -> None:
        self.bed.root("rm", "-f", f"{self.state}/pods/.fill")
