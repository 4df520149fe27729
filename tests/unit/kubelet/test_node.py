"""The virtual node's status as a function of Slurm and the machine."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from hpk.kubelet import nodestatus
from hpk.slurm import commands

MACHINE = nodestatus.Machine(
    address="10.0.0.1",
    kubelet_port=1234,
    disk_total=1 << 40,
    disk_free=1 << 39,
    kernel="6.1",
    os_image="Debian",
    machine_id="m",
    boot_id="b",
    runtime="apptainer://1.4.5",
)
CAPACITY = commands.Capacity(cpus=8, memory_bytes=16 << 30, gres={"gpu": 3, "gpu:a100": 2, "gpu:v100": 1}, nodes=2)
TABLE = {"nvidia.com/gpu": "gpu", "nvidia.com/a100": "gpu:a100", "amd.com/gpu": "gpu:mi300"}


def status(slurm: nodestatus.Slurm, machine: nodestatus.Machine = MACHINE, old: Any = None) -> dict[str, Any]:
    return nodestatus.status("hpk", slurm, machine, old=old or {}, max_pods=100, resources=TABLE)


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in found["conditions"] if c["type"] == kind)


def test_capacity_is_slurms() -> None:
    found = status(nodestatus.Slurm(CAPACITY))
    assert found["capacity"] == {
        "cpu": "8",
        "memory": "16777216Ki",
        "pods": "100",
        "ephemeral-storage": "1073741824Ki",
        "nvidia.com/gpu": "3",
        "nvidia.com/a100": "2",
    }


def test_no_answer_keeps_what_was_known_and_ready() -> None:
    old = {"capacity": {"cpu": "4", "memory": "1Gi", "pods": "1", "ephemeral-storage": "1Gi"}}
    found = status(nodestatus.Slurm(None, "2026-01-01T00:00:00Z", "no answer"), old=old)
    assert found["capacity"] == old["capacity"]
    assert condition(found, "Ready")["status"] == "True"
    assert condition(found, "SlurmReachable") == {
        "type": "SlurmReachable",
        "status": "False",
        "reason": "SlurmNotAnswering",
        "message": "no answer",
    }
    assert condition(status(nodestatus.Slurm(None, "x", "no answer")), "Ready")["status"] == "False"


def test_no_space_is_disk_pressure() -> None:
    full = dataclasses.replace(MACHINE, disk_free=nodestatus.MIN_FREE - 1)
    assert condition(status(nodestatus.Slurm(CAPACITY), full), "DiskPressure")["status"] == "True"
    assert condition(status(nodestatus.Slurm(CAPACITY)), "DiskPressure")["status"] == "False"


def test_transition_times() -> None:
    first = nodestatus.timed(status(nodestatus.Slurm(CAPACITY))["conditions"], [], "t1")
    silent = status(nodestatus.Slurm(CAPACITY, "since", "p"))["conditions"]
    second = {c["type"]: c for c in nodestatus.timed(silent, first, "t2")}
    assert second["Ready"]["lastTransitionTime"] == "t1"
    assert second["Ready"]["lastHeartbeatTime"] == "t2"
    assert second["SlurmReachable"]["lastTransitionTime"] == "t2"


def test_changed_sees_through_spelling_and_times() -> None:
    new = status(nodestatus.Slurm(CAPACITY))
    old = {**new, "capacity": {**new["capacity"], "memory": "16Gi"}, "conditions": nodestatus.timed(new["conditions"], [], "t")}
    assert not nodestatus.changed(new, old)
    assert nodestatus.changed(status(nodestatus.Slurm(dataclasses.replace(CAPACITY, cpus=9))), old)
    assert nodestatus.changed(status(nodestatus.Slurm(CAPACITY), dataclasses.replace(MACHINE, address="10.0.0.2")), old)
    assert nodestatus.changed(status(nodestatus.Slurm(CAPACITY), dataclasses.replace(MACHINE, kernel="6.2")), old)
    assert nodestatus.changed(status(nodestatus.Slurm(CAPACITY, "since", "p")), old)
    assert nodestatus.changed(new, {})


def test_patch_removes_what_went() -> None:
    old = {"capacity": {"cpu": "1", "nvidia.com/gpu": "1"}, "allocatable": {}}
    body = nodestatus.patch(status(nodestatus.Slurm(dataclasses.replace(CAPACITY, gres={}))), old, "t")["status"]
    assert body["capacity"]["nvidia.com/gpu"] is None
    assert {"$patch": "replace"} in body["addresses"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("apptainer version 1.4.5\n", "apptainer://1.4.5"),
        ("singularity-ce version 4.1.0-jammy\n", "singularity://4.1.0-jammy"),
        ("singularity version 3.8.7-1.el8", "singularity://3.8.7-1.el8"),
        ("", "apptainer://unknown"),
    ],
)
def test_runtime_version(output: str, expected: str) -> None:
    assert nodestatus.runtime_version(output) == expected


def test_kubelet_version_is_semantic() -> None:
    identifier = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
    assert re.fullmatch(rf"v1\.36\.\d+-{identifier}(\.{identifier})*", nodestatus.KUBELET_VERSION)
