from typing import Any

import pytest

from hpk import config as configuration
from hpk import errors
from hpk.kubelet import resources


def item(cpu: str = "", memory: str = "", limit: str = "", **more: Any) -> dict[str, Any]:
    requests = {name: value for name, value in (("cpu", cpu), ("memory", memory)) if value}
    limits = {"memory": limit} if limit else {}
    return {"name": "c", "resources": {"requests": requests, "limits": limits}, **more}


def job(config: configuration.Config | None = None, annotations: dict[str, str] | None = None, **spec: Any) -> Any:
    pod = {"metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "annotations": annotations}, "spec": spec}
    return resources.job(pod, config or configuration.Config())


def test_nothing_asked_is_left_to_the_site() -> None:
    plain = job(containers=[item()])
    assert (plain.name, plain.comment) == ("ns/p", "hpk uid=u-1")
    assert (plain.cpus, plain.memory_mb, plain.gres, plain.time_limit, plain.flags) == (0, 0, (), 0, ())


def test_sum_of_containers_rounded_up() -> None:
    assert job(containers=[item("600m", "1Gi"), item("500m", "1")]).cpus == 2
    assert job(containers=[item("600m", "1Gi"), item("500m", "1")]).memory_mb == 1025
    assert job(containers=[item("1m")]).cpus == 1


def test_limit_where_higher() -> None:
    assert job(containers=[item("", "64Mi", "128Mi")]).memory_mb == 128
    assert job(containers=[item("", "", "128Mi")]).memory_mb == 128
    limits_only = {"name": "c", "resources": {"limits": {"cpu": "3"}}}
    assert job(containers=[limits_only]).cpus == 3


def test_init_containers_and_sidecars() -> None:
    spec = {
        "initContainers": [item("4"), item("1", restartPolicy="Always"), item("5"), item("1", restartPolicy="Always")],
        "containers": [item("2")],
    }
    assert job(**spec).cpus == 6  # the third, with the sidecar before it
    spec["containers"] = [item("2"), item("3")]
    assert job(**spec).cpus == 7  # both sidecars and both containers


def test_pod_level_and_overhead() -> None:
    spec = {
        "containers": [item("1", "1Gi")],
        "resources": {"requests": {"cpu": "3"}, "limits": {"memory": "2Gi"}},
        "overhead": {"cpu": "250m"},
    }
    assert job(**spec).cpus == 4
    assert job(**spec).memory_mb == 2048


def test_gres_by_the_table() -> None:
    gpus = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    assert job(containers=[gpus, gpus]).gres == ("gpu:4",)
    config = configuration.Config(slurm=configuration.SlurmConfig(resources={"nvidia.com/gpu": "gpu:a100", "x.io/fpga": "fpga"}))
    both = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": 1, "x.io/fpga": "1"}}}
    assert job(config, containers=[both]).gres == ("gpu:a100:1", "fpga:1")
    assert resources.gpu(gpus) == "nvidia"
    assert resources.gpu({"resources": {"limits": {"amd.com/gpu": "1"}}}) == "rocm"
    assert resources.gpu({"resources": {"limits": {"amd.com/gpu": "0"}}}) == ""
    with pytest.raises(errors.Rejected, match=r"slurm\.resources knows: amd\.com/gpu, nvidia\.com/gpu"):
        job(containers=[both])


def test_time_limit_leaves_room_to_end() -> None:
    assert job(containers=[item()], activeDeadlineSeconds=60).time_limit == 90
    assert job(containers=[item()], activeDeadlineSeconds=60, terminationGracePeriodSeconds=0).time_limit == 60
    assert job(containers=[item()], activeDeadlineSeconds=2**31).time_limit < 2**31


def test_defaults_and_flags_of_the_configuration() -> None:
    slurm = configuration.SlurmConfig(partition="main", account="phys", qos="low", flags="-x n1", default_cpu="2", default_memory="1G")
    found = job(configuration.Config(slurm=slurm), {"slurm-job.hpk.io/flags": "--exclude=n2"}, containers=[item()])
    assert (found.partition, found.account, found.qos, found.cpus, found.memory_mb) == ("main", "phys", "low", 2, 954)
    assert found.flags == ("--exclude=n1", "--exclude=n2")  # the Pod's last: it wins


@pytest.mark.parametrize("text", ["-1", "lots", "1e99"])
def test_bad_amounts_name_the_field(text: str) -> None:
    with pytest.raises(errors.Rejected, match=r"spec.containers\[0\].resources.requests\[cpu\]"):
        job(containers=[item(text)])
