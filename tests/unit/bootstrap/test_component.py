"""Components as data: order, container command line, environment."""

from __future__ import annotations

import dataclasses

import pytest

from hpk import config, paths
from hpk.bootstrap import component, components


def spec(name: str, *links: str) -> component.Component:
    return component.Component(name, name, ("true",), links)


def a_run(**changes: object) -> component.Run:
    run = component.Run(
        paths=paths.Paths("/home/alice/.hpk"),
        config=config.Config(),
        runtime="/usr/bin/apptainer",
        image="/home/alice/.hpk/images/control-plane.sif",
        python="/home/alice/.hpk/venv/bin/python",
        host="c1",
        host_names=("c1.site.example", "c1"),
        address="10.0.0.11",
        ports={"apiserver": 6443, "etcd": 2379, "etcd-peer": 2380, "kcm": 10257, "dns": 8853, "dns-ready": 8181},
        resolvers=("10.0.0.2", "10.0.0.3"),
        job_id="17",
    )
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


def test_each_comes_after_those_it_links_to() -> None:
    ordered = component.start_order([spec("d", "b", "c"), spec("b", "a"), spec("c", "a"), spec("a"), spec("e")])
    assert [item.name for item in ordered] == ["a", "b", "c", "d", "e"]


def test_circle_and_unknown_link_are_told() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        component.start_order([spec("a", "b"), spec("b", "a")])
    with pytest.raises(ValueError, match="links to x"):
        component.start_order([spec("a", "x")])


def test_order_of_the_control_plane() -> None:
    names = [item.name for item in components.build(a_run())]
    assert names[:2] == ["etcd", "kube-apiserver"]
    assert sorted(names[2:]) == ["coredns", "kube-controller-manager", "kubelet", "scheduler"]


def test_container_sees_the_keys_read_only_and_nothing_else_of_home() -> None:
    argv = component.in_container(a_run(), "etcd", ["--name=hpk"], writable=["/data/etcd"], env={"GOGC": "50"})
    binds = [argv[number + 1] for number, word in enumerate(argv) if word == "--bind"]
    assert binds == [f"/home/alice/.hpk/{name}:/home/alice/.hpk/{name}:ro" for name in ("pki", "kubeconfigs", "run")] + [
        "/data/etcd:/data/etcd"
    ]
    assert {"--contain", "--no-home", "--cleanenv", "--no-eval"} <= set(argv)
    assert argv[-3:] == ("/home/alice/.hpk/images/control-plane.sif", "/usr/bin/etcd", "--name=hpk")


def test_only_the_api_server_listens_beyond_loopback() -> None:
    for item in components.build(a_run()):
        for word in item.argv:
            if word.startswith(("--listen", "--bind-address", "--secure-port")) and item.name != "kube-apiserver":
                assert "127.0.0.1" in word or word.startswith("--secure-port"), word


def test_machine_without_a_network_has_no_endpoint_to_publish() -> None:
    api = next(item for item in components.build(a_run(address="127.0.0.1")) if item.name == "kube-apiserver")
    assert "--endpoint-reconciler-type=none" in api.argv
    api = next(item for item in components.build(a_run()) if item.name == "kube-apiserver")
    assert "--endpoint-reconciler-type=none" not in api.argv


def test_environment_does_not_tell_the_pods_about_our_own_job() -> None:
    own = {"PATH": "/bin", "SLURM_JOB_ID": "17", "SLURM_MEM_PER_NODE": "2048", "SBATCH_PARTITION": "x", "SLURM_CONF": "/etc/slurm.conf"}
    env = component.environment(a_run(), own)
    assert env["HPK_HOME"] == "/home/alice/.hpk"
    assert env["PYTHONPATH"].split(":")[0] in component.__file__
    assert {name for name in env if name.startswith(("SLURM", "SBATCH"))} == {"SLURM_CONF"}


def test_ipv6_address_in_the_url() -> None:
    assert a_run(address="fd00::1").api_server == "https://[fd00::1]:6443"
