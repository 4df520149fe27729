"""One module per program of the control plane; each turns the facts of a run into a Component."""

from __future__ import annotations

from hpk.bootstrap import component
from hpk.bootstrap.components import coredns, etcd, kube_apiserver, kube_controller_manager, ours


def build(run: component.Run) -> tuple[component.Component, ...]:
    """Return all components of the control plane, in the order in which they start."""
    return tuple(
        component.start_order(
            [
                etcd.build(run),
                kube_apiserver.build(run),
                kube_controller_manager.build(run),
                ours.kubelet(run),
                ours.scheduler(run),
                coredns.build(run),
            ]
        )
    )
