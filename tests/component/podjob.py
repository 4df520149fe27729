"""A Pod's job without Slurm and kubelet: real plan, real script, real supervisor, real Apptainer, as an ordinary user."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hpk import files
from hpk.kubelet import podplan, script

TREE = pathlib.Path(__file__).resolve().parents[2]
#: An account that exists everywhere and owns nothing; used when the tests run as root.
NOBODY = 65534
#: The interpreter of the supervisor: the system's, since the tests' own may lie where other users cannot go.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
APPLETS = (
    "sh ls cat echo env sleep id mount hostname ps true false dd df mkdir touch grep stat kill nc wget head printenv tr cut seq yes "
    "httpd readlink ln rm printf test awk"
)


def missing() -> str | None:
    """Why containers cannot be run here; None when they can."""
    if not _runtime():
        return "Apptainer is not installed (python -m tests.testbed installs it)"
    if not os.path.exists("/bin/busybox"):
        return "busybox-static is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        return "/dev/fuse cannot be used by ordinary users (chmod 0666 /dev/fuse)"
    return None


def _runtime() -> str | None:
    return shutil.which("apptainer", path=_path())


def _path() -> str:
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/opt/apptainer/bin"


def _as_user() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}


@contextlib.contextmanager
def workspace() -> Iterator[Workspace]:
    folder = tempfile.mkdtemp(prefix="hpk-test-", dir="/tmp")
    try:
        os.makedirs(f"{folder}/tmp")
        for path in (folder, f"{folder}/tmp"):
            os.chmod(path, 0o755)
            if os.getuid() == 0:
                os.chown(path, NOBODY, NOBODY)
        space = Workspace(pathlib.Path(folder))
        space.build_image()
        yield space
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Workspace:
    root: pathlib.Path

    @property
    def image(self) -> str:
        return str(self.root / "tiny.sif")

    def env(self) -> dict[str, str]:
        return {"PATH": _path(), "HOME": str(self.root), "TMPDIR": str(self.root / "tmp"), "SECRET_OF_THE_HOST": "leaked"}

    def run(self, argv: Sequence[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, env=self.env(), cwd=self.root, text=True, capture_output=True, **_as_user(), **kwargs)

    def build_image(self) -> None:
        links = "\n".join(f" ln -s busybox $R/bin/{name}" for name in APPLETS.split())
        (self.root / "tiny.def").write_text(
            "Bootstrap: scratch\n%setup\n R=$APPTAINER_ROOTFS\n mkdir -p $R/bin $R/tmp $R/etc $R/root $R/srv\n cp /bin/busybox $R/bin/\n"
            f"{links}\n echo root:x:0:0:root:/root:/bin/sh > $R/etc/passwd\n echo root:x:0: > $R/etc/group\n chmod 1777 $R/tmp\n"
            " echo hello > $R/srv/index.html\n"
        )
        done = self.run(["apptainer", "-s", "build", "tiny.sif", "tiny.def"])
        assert done.returncode == 0, done.stderr

    def job(self, name: str, containers: Sequence[dict[str, Any]], init: Sequence[dict[str, Any]] = (), **plan: Any) -> Job:
        """Write the Pod's folder. ``containers`` are fields of ContainerPlan, ``plan`` fields of PodPlan."""
        pod_dir = self.root / "pods" / name
        planned = podplan.PodPlan(
            **{
                "uid": f"uid-{name}",
                "namespace": "default",
                "name": name,
                "node_name": "hpk",
                "pod_dir": str(pod_dir),
                "job": podplan.SlurmJob(f"default/{name}", f"hpk uid=uid-{name}"),
                "containers": tuple(self._container(fields) for fields in containers),
                "init_containers": tuple(self._container(fields) for fields in init),
                "hostname": name,
                "namespaces": ("user", "ipc", "uts", "mnt"),
                "restart_policy": "Never",
                "termination_grace_period": 5,
                **plan,
            }
        )
        (pod_dir / "env").mkdir(parents=True)
        files.write_atomic(str(pod_dir / "job.sh"), script.job_script(planned))
        files.write_json(str(pod_dir / "plan.json"), script.plan_record(planned))
        for container in planned.init_containers + planned.containers:
            files.write_atomic(str(pod_dir / "env" / f"{container.name}.sh"), script.env_file(container))
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(self.root / "pods")], check=True)
        return Job(self, pod_dir)

    def _container(self, fields: dict[str, Any]) -> podplan.ContainerPlan:
        fields = {"image": "tiny", "image_id": "", "image_path": self.image, **fields}
        fields["env"] = {"PATH": "/bin", **fields.get("env", {})}
        command = fields["command"]
        fields["command"] = ("sh", "-c", command) if isinstance(command, str) else tuple(command)
        return podplan.ContainerPlan(**fields)


class Job:
    def __init__(self, space: Workspace, pod_dir: pathlib.Path) -> None:
        self.space = space
        self.pod_dir = pod_dir
        self.process: subprocess.Popen[bytes] | None = None
        self.before = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()}
        self.folders_before = self._folders()

    def __enter__(self) -> Job:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        end = time.monotonic() + 5
        while self.leftovers() and time.monotonic() < end:
            time.sleep(0.05)
        left = self.leftovers()
        if left:
            raise AssertionError(f"left behind: {left}")

    def start(self, prefix: Sequence[str] = (), **extra: str) -> Job:
        argv = [*prefix, "/bin/bash", str(self.pod_dir / "job.sh")]
        env = {**self.space.env(), "HPK_PYTHON": PYTHON, **extra}
        with open(self.pod_dir / "slurm.out", "ab") as out:
            self.process = subprocess.Popen(
                argv, env=env, cwd=self.pod_dir, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **_as_user()
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def output(self) -> str:
        return (self.pod_dir / "slurm.out").read_text(errors="replace")

    def report(self) -> dict[str, Any]:
        value = files.read_json(str(self.pod_dir / "status.json"))
        return value if isinstance(value, dict) else {}

    def container(self, name: str) -> dict[str, Any]:
        report = self.report()
        statuses = report.get("initContainerStatuses", []) + report.get("containerStatuses", [])
        return next((status for status in statuses if status["name"] == name), {})

    def events(self, reason: str = "") -> list[tuple[str, str, str]]:
        return [(e["container"], e["reason"], e["message"]) for e in self.report().get("events", []) if not reason or e["reason"] == reason]

    def wait_for(self, what: Callable[[], Any], seconds: float = 15) -> Any:
        """Wait until ``what()`` is true and return it; fails with the report when it never is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = what()
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"waited {seconds} s in vain\n{json.dumps(self.report(), indent=1)}\n{self.output()}")

    def running(self, name: str, seconds: float = 15) -> dict[str, Any]:
        self.wait_for(lambda: "running" in self.container(name).get("state", {}), seconds)
        return self.container(name)

    def wait(self, seconds: float = 30) -> int:
        """Wait for the end of the job and return its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job goes on\n{json.dumps(self.report(), indent=1)}\n{self.output()}") from None

    def finish(self, seconds: float = 30) -> dict[str, Any]:
        """Run to the end and return the last report."""
        if self.process is None:
            self.start()
        self.wait(seconds)
        return self.report()

    def terminated(self, name: str) -> dict[str, Any]:
        return self.container(name).get("state", {}).get("terminated", {})

    def log(self, name: str, restart: int = 0) -> str:
        """The container's output without the CRI's prefixes."""
        path = self.pod_dir / "containers" / name / f"{restart}.log"
        if not path.exists():
            return ""
        text = ""
        for line in path.read_text(errors="replace").splitlines():
            _, _, tag, content = line.split(" ", 3)
            text += content + ("\n" if tag == "F" else "")
        return text

    def signal(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def leftovers(self) -> list[str]:
        """Processes that began with this job or after it and are not the tests', and folders of this Pod, that still exist."""
        found = sorted(self._folders() - self.folders_before)
        listed = subprocess.run(
            ["ps", "-u", str(NOBODY if os.getuid() == 0 else os.getuid()), "-o", "pid=,args="], capture_output=True, text=True
        )
        for line in listed.stdout.splitlines():
            pid, command = line.split(None, 1)
            if (
                int(pid) not in self.before
                and "<defunct>" not in command
                and any(word in command for word in ("hpk", "Apptainer", "fuse", "sleep", "hpk-guard"))
            ):
                found.append(line)
        return found

    def _folders(self) -> set[str]:
        folders = (str(self.space.root / "tmp"), "/dev/shm")
        return {
            f"{folder}/{entry}" for folder in folders for entry in os.listdir(folder) if entry.startswith(f"hpk-uid-{self.pod_dir.name}-")
        }
