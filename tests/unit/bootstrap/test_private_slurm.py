"""The private Slurm's configuration, and what `hpk slurm` says to bad input. Running daemons: tests/component/test_private_slurm.py."""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import sys

import pytest

from hpk import cli, errors, paths
from hpk.bootstrap import private_slurm, private_slurm_conf, private_slurm_daemons
from hpk.slurm import private

MACHINE = private_slurm_conf.Machine(
    host="lap", address="127.0.1.1", user="ada", cpus=8, memory_mb=3600, slurmctld_port=20001, slurmd_port=20002
)


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_conf_runs_as_the_user_on_loopback() -> None:
    text = private_slurm_conf.slurm_conf(paths.SlurmDir("/h/.hpk/slurm/lap"), MACHINE)
    values = settings(text)
    assert values["SlurmUser"] == values["SlurmdUser"] == "ada"
    assert values["SlurmctldHost"] == "lap(127.0.1.1)"
    assert values["CommunicationParameters"] == "NoInAddrAny,NoCtldInAddrAny"
    assert values["AuthType"] == "auth/munge"
    assert values["AuthInfo"].startswith("socket=/h/.hpk/slurm/lap/run/munge.sock,")
    assert (values["SlurmctldPort"], values["SlurmdPort"]) == ("20001", "20002")
    (node,) = [line for line in text.splitlines() if line.startswith("NodeName=")]
    assert " NodeAddr=127.0.1.1 CPUs=8 " in node
    assert " RealMemory=3600 " in node
    assert all("/h/.hpk/slurm/lap/" in value for name, value in values.items() if value.startswith("/"))


def test_client_conf_differs_in_where_srun_listens_only() -> None:
    text = private_slurm_conf.slurm_conf(paths.SlurmDir("/h"), MACHINE)
    client = settings(private_slurm_conf.client_conf(text))
    assert client.pop("CommunicationParameters") == "NoCtldInAddrAny"
    assert client == {name: value for name, value in settings(text).items() if name != "CommunicationParameters"}


@pytest.mark.parametrize(("real", "declared"), [(1, 8), (2, 8), (4, 16), (64, 256)])
def test_more_cpus_are_declared_than_exist(real: int, declared: int) -> None:
    assert private_slurm_conf.default_cpus(real) == declared


def test_memory_is_nine_tenths_of_the_real_one() -> None:
    assert private_slurm_conf.memory_mb("MemFree: 5 kB\nMemTotal:       4096000 kB\n") == 3600
    assert private_slurm_conf.default_memory_mb(MACHINE) == 450


@pytest.mark.parametrize(("text", "needs"), [("slurm-wlm 22.05.8", False), ("slurm 23.11.1", True), ("slurm 24.11.5", True), ("?", True)])
def test_newer_slurms_are_told_that_there_are_no_cgroups(text: str, needs: bool) -> None:
    assert private_slurm_conf.needs_cgroup_conf(private_slurm_conf.version(text)) is needs


def test_hosts_file_puts_the_name_at_loopback_only() -> None:
    original = "127.0.0.1 localhost\n10.1.2.3 lap.example.org lap other # lap\n10.1.2.3 lap\n::1 localhost\n"
    assert private_slurm_conf.hosts(original, ["lap.example.org", "lap"]) == (
        "127.0.0.1 localhost lap.example.org lap\n127.0.0.1 localhost\n10.1.2.3 other\n::1 localhost\n"
    )


def test_listening_sees_own_sockets() -> None:
    with socket.socket() as plain, socket.socket() as everywhere:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        found = private_slurm_daemons.listening(os.getpid())
        assert ("127.0.0.1", plain.getsockname()[1]) in found
        assert ("0.0.0.0", everywhere.getsockname()[1]) in found


def test_free_port_goes_on_to_the_next() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert private_slurm.free_port(port, "127.0.0.1", set()) != port
    first = private_slurm.free_port(20000, "127.0.0.1", set())
    assert private_slurm.free_port(20000, "127.0.0.1", {first}) != first


def test_a_stale_pid_file_is_nobody(tmp_path: pathlib.Path) -> None:
    folder = paths.SlurmDir(str(tmp_path))
    os.makedirs(folder.run)
    for content in ("", "x", "0", str(os.getpid()), str(2**22 + 1)):
        pathlib.Path(folder.pid("slurmctld")).write_text(content)
        assert private.daemon_pid(folder, "slurmctld") == 0


def test_slurm_conf_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "daemon_pid", lambda folder, daemon: 7)
    where = paths.Paths("/h/.hpk")
    assert private.environment(where, {}) == {"SLURM_CONF": f"/h/.hpk/slurm/{private.host()}/etc/slurm.conf"}
    assert private.environment(where, {"SLURM_CONF": "/etc/slurm/slurm.conf"}) == {}


def test_missing_programs_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_slurm_daemons, "find", lambda program: None if program in ("munged", "slurmd", "sbatch", "sinfo") else "/x")
    monkeypatch.setattr(private_slurm_daemons.shutil, "which", lambda program: None)
    with pytest.raises(errors.MissingTool, match="not installed: munged, slurmd, sbatch, sinfo") as caught:
        private_slurm_daemons.check_programs()
    assert caught.value.hint == "as root: apt-get install --no-install-recommends munge slurmd slurm-client"


def hpk(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    private_slurm.add_arguments(parser)
    return parser.parse_args(words)


def test_root_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("HPK_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(errors.InvalidInput, match="not as root"):
        private_slurm.run(hpk("up"))


@pytest.mark.parametrize("cpus", ["0", "-1", "5000"])
def test_impossible_cpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, cpus: str) -> None:
    monkeypatch.setenv("HPK_HOME", str(tmp_path))
    with pytest.raises(errors.InvalidInput, match="--cpus"):
        private_slurm.run(hpk("up", f"--cpus={cpus}"))


def test_a_slurm_that_answers_is_not_doubled(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!{sys.executable}\nprint('long')\nprint('short')\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.StateError, match=r"has a Slurm already \(partitions: long, short\)"):
        private_slurm.refuse_beside_another(paths.SlurmDir(str(tmp_path / "slurm")))
    sinfo.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('sinfo: fatal: no configuration')\n")
    private_slurm.refuse_beside_another(paths.SlurmDir(str(tmp_path / "slurm")))


def test_a_path_too_long_for_sockets_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPK_HOME", str(tmp_path / ("x" * 90)))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(private_slurm_daemons, "check_programs", lambda: None)
    monkeypatch.setattr(private_slurm, "refuse_beside_another", lambda folder: None)
    assert cli.main(["slurm", "up"]) == 1
    assert "too long for the sockets" in capsys.readouterr().err


def test_status_and_env_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HPK_HOME", str(tmp_path))
    assert cli.main(["slurm", "status"]) == 1
    assert capsys.readouterr().out.count("does not run") == 3
    assert cli.main(["slurm", "env"]) == 1
    assert "`hpk slurm up` starts it" in capsys.readouterr().err
    assert cli.main(["slurm", "down"]) == 0
    assert not os.listdir(tmp_path)
