"""The files that README tells to apply, applied."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.e2e


def example(alice: Cluster, name: str) -> str:
    return f"{alice.home}/hpk/examples/{name}.yaml"


def test_hello(alice: Cluster) -> None:
    alice.kubectl("apply", "-f", example(alice, "hello/job"))
    alice.kubectl("wait", "--for=condition=Complete", "job/hello", "--timeout=120s", timeout=130)
    lines = alice.kubectl("logs", "-l", "job-name=hello").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("Hello from Pod hello-") and " at 10.77." in line for line in lines)
    alice.delete("-f", example(alice, "hello/job"))


@pytest.mark.parametrize(("name", "what", "pods"), [("deployment", "deployment/web", 3), ("statefulset", "statefulset/notes", 2)])
def test_workloads(alice: Cluster, name: str, what: str, pods: int) -> None:
    alice.kubectl("apply", "-f", example(alice, name))
    alice.kubectl("rollout", "status", what, "--timeout=120s", timeout=130)
    app = what.partition("/")[2]
    names = [item["metadata"]["name"] for item in alice.list("pods", f"app={app}")]
    assert len(names) == pods
    assert all(alice.wait(lambda pod=pod: alice.logs(pod)) for pod in names)
    alice.delete("-f", example(alice, name))
    alice.wait(lambda: not alice.list("pods", f"app={app}"))


def test_cronjob(alice: Cluster) -> None:
    alice.kubectl("apply", "-f", example(alice, "cronjob"))
    alice.kubectl("create", "job", "tick-now", "--from=cronjob/tick")
    alice.kubectl("wait", "--for=condition=Complete", "job/tick-now", "--timeout=120s", timeout=130)
    assert "20" in alice.kubectl("logs", "job/tick-now")
    alice.delete("cronjob/tick", "job/tick-now")


def test_render_of_an_example(alice: Cluster) -> None:
    script = alice.run("hpk", "render", example(alice, "hello/job")).stdout
    assert script.startswith("#!/bin/bash\n")
    assert "singularity" in script
    assert "container_main()" in script
