"""The parts of HPK itself: they run on the node, not in the image, since they need Slurm's commands."""

from __future__ import annotations

from hpk.bootstrap import component


def scheduler(run: component.Run) -> component.Component:
    return component.Component(
        name="scheduler",
        summary="scheduler",
        argv=(run.python, "-m", "hpk", "scheduler"),
        links=("kube-apiserver",),
        stop_timeout=5.0,
        certificates=("scheduler",),
    )


def kubelet(run: component.Run) -> component.Component:
    return component.Component(
        name="kubelet",
        summary="kubelet",
        argv=(run.python, "-m", "hpk", "kubelet"),
        links=("kube-apiserver",),
        stop_timeout=10.0,
        certificates=("kubelet", "kubelet-client"),
    )
