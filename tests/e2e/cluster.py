"""One user's cluster on the test bed, used as that user would: sbatch, kubectl, and nothing else of HPK's inside."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import yaml

from tests.testbed import Bed


class Cluster:
    """What ``user`` sees after logging in."""

    def __init__(self, bed: Bed, user: str) -> None:
        self.bed = bed
        self.user = user
        self.home = f"/home/{user}"
        self.job = ""

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.bed.run(
            "env", f"KUBECONFIG={self.home}/.hpk/kubeconfig", *argv, user=self.user, stdin=stdin, timeout=timeout, check=check
        )

    def start(self, *flags: str, timeout: float = 120) -> float:
        """``sbatch slurm/hpk.sbatch`` and wait for the kubeconfig and a Ready node. Returns the seconds from sbatch to Ready."""
        begin = time.monotonic()
        self.run("rm", "-f", f"{self.home}/.hpk/kubeconfig")
        self.job = self.run("sbatch", "--parsable", *flags, f"{self.home}/hpk/slurm/hpk.sbatch").stdout.strip().partition(";")[0]
        wait_for(
            lambda: self.run("test", "-e", f"{self.home}/.hpk/kubeconfig", check=False).returncode == 0, timeout, self.explain, pace=0.2
        )
        wait_for(lambda: "True" in self._node_ready(), timeout, self.explain, pace=0.2)
        return time.monotonic() - begin

    def _node_ready(self) -> str:
        path = "{.items[*].status.conditions[?(@.type=='Ready')].status}"
        return self.run("kubectl", "get", "nodes", "-o", f"jsonpath={path}", check=False).stdout

    def explain(self) -> str:
        """What a developer wants to see when the cluster does not do what it should."""
        script = """
squeue -a; kubectl get pods,events -A 2>&1 | tail -40
cd ~/.hpk 2>/dev/null && tail -n 25 logs/*.log ../slurm-*.out ../hpk-*.out 2>/dev/null
"""
        return self.run("bash", "-c", script, check=False).stdout[-12000:]

    def stop(self) -> None:
        self.run("scancel", "--me", check=False)
        wait_for(lambda: not self.run("squeue", "--me", "-h").stdout.strip(), 90)

    # kubectl, in the few forms that the tests need

    def kubectl(self, *argv: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        done = self.run("kubectl", *argv, stdin=stdin, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(argv)}: {done.stderr}\n{self.explain()}"
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        return json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))

    def list(self, kind: str, selector: str = "", namespace: str = "default") -> list[dict[str, Any]]:
        argv = ["get", kind, "-n", namespace, "-o", "json", *(["-l", selector] if selector else [])]
        return json.loads(self.kubectl(*argv))["items"]

    def exists(self, kind: str, name: str, namespace: str = "default") -> bool:
        return self.run("kubectl", "get", kind, name, "-n", namespace, check=False).returncode == 0

    def logs(self, pod: str, *argv: str, namespace: str = "default") -> str:
        return self.kubectl("logs", pod, "-n", namespace, *argv)

    def events(self, name: str, namespace: str = "default") -> list[dict[str, Any]]:
        items = json.loads(self.kubectl("get", "events", "-n", namespace, "--field-selector", f"involvedObject.name={name}", "-o", "json"))[
            "items"
        ]
        return [{"type": item.get("type"), "reason": item.get("reason"), "message": item.get("message")} for item in items]

    def delete(self, *argv: str) -> None:
        self.kubectl("delete", "--ignore-not-found", *argv, timeout=120)

    def wait(self, condition: Callable[[], Any], timeout: float = 60) -> Any:
        return wait_for(condition, timeout, self.explain)

    def wait_phase(self, pod: str, *phases: str, timeout: float = 60, namespace: str = "default") -> dict[str, Any]:
        """Wait until the Pod has one of the phases and return it."""

        def reached() -> dict[str, Any] | None:
            found = self.get("pod", pod, namespace)
            return found if found["status"].get("phase") in phases else None

        return self.wait(reached, timeout)

    def queue(self) -> list[dict[str, str]]:
        """The user's Slurm jobs: id, name, state, host."""
        lines = self.run("squeue", "--me", "-h", "-o", "%i|%j|%T|%B|%k").stdout.splitlines()
        return [dict(zip(("id", "name", "state", "host", "comment"), line.split("|"), strict=False)) for line in lines]


def wait_for(condition: Callable[[], Any], timeout: float, explain: Callable[[], str] = lambda: "", pace: float = 0.5) -> Any:
    """Call ``condition`` until it returns something true, and return that. Fails with ``explain()`` after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not so after {timeout:.0f} s\n{explain()}")
        time.sleep(pace)


def pod(name: str, *command: str, image: str = "busybox", **spec: Any) -> dict[str, Any]:
    """A Pod with one container ``main`` that runs ``command``; ``spec`` adds to or replaces fields of its spec."""
    container: dict[str, Any] = {"name": "main", "image": image}
    if command:
        container["command"] = list(command)
    metadata = {"name": name, **spec.pop("metadata", {})}
    container.update(spec.pop("container", {}))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [container], **spec}}


def terminated(pod: dict[str, Any], container: str = "main", kind: str = "containerStatuses") -> dict[str, Any]:
    """state.terminated of a container."""
    status = next(item for item in pod["status"][kind] if item["name"] == container)
    return status["state"]["terminated"]
