"""Slurm on the hosts: its configuration, its daemons, its accounting."""

from __future__ import annotations

import os
import secrets
import shutil
import string

from tests.testbed import commands, host, layout, users

_CPUS = 8
_MEMORY_MIB = 16000
_TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "etc")
_MARIADB_SOCKET = "/run/mysqld/mysqld.sock"


def configure(bed: layout.Layout, nodes: list[str]) -> None:
    """Write /etc/slurm and the munge key of the bed."""
    node_lines = [
        f"NodeName={node} NodeAddr={layout.address(node)} CPUs={_CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={_CPUS} ThreadsPerCore=1"
        f" RealMemory={_MEMORY_MIB} Gres=gpu:a100:2"
        for node in nodes
    ]
    # Some sites do not keep the comment of a job: HPK_TESTBED_STORE_COMMENT=no makes a bed like theirs.
    stored = os.environ.get("HPK_TESTBED_STORE_COMMENT") != "no"
    values = {
        "nodes": ",".join(nodes),
        "node_lines": "\n".join(node_lines),
        "store_flags": "AccountingStoreFlags=job_comment" if stored else "",
    }
    etc = f"{bed.etc}/slurm"
    with open(f"{_TEMPLATES}/slurm.conf", encoding="utf-8") as file:
        commands.write(f"{etc}/slurm.conf", string.Template(file.read()).substitute(values))
    commands.write(f"{etc}/gres.conf", f"NodeName={','.join(nodes)} Name=gpu Type=a100 File=/dev/tty[0-1]\n")  # any two devices will do
    shutil.copy(f"{_TEMPLATES}/cgroup.conf", f"{etc}/cgroup.conf")
    shutil.copy(f"{_TEMPLATES}/slurmdbd.conf", f"{etc}/slurmdbd.conf")
    os.chmod(f"{etc}/slurmdbd.conf", 0o600)
    shutil.chown(f"{etc}/slurmdbd.conf", "slurm")
    users.folder(f"{bed.etc}/munge", "munge", 0o700)
    key = f"{bed.etc}/munge/munge.key"
    if not os.path.exists(key):
        with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o400), "wb") as out:
            out.write(secrets.token_bytes(1024))
        shutil.chown(key, "munge", "munge")


def start_munge(machine: host.Host) -> None:
    machine.run(["runuser", "-u", "munge", "--", "munged", "--log-file=/run/munge/munged.log", "--seed-file=/run/munge/munged.seed"])


def start_controller(login: host.Host) -> None:
    """MariaDB, slurmdbd, the accounts, slurmctld: in this order, each when the one before answers."""
    _start_database(login)
    login.run(["slurmdbd"])
    commands.wait_until("answer of slurmdbd", lambda: login.run(["sacctmgr", "-n", "show", "cluster"], check=False).returncode == 0, 30)
    done = f"{login.disk}/accounts.done"
    if not os.path.exists(done):
        login.run(["sacctmgr", "-i", "add", "cluster", "testbed"])
        login.run(["sacctmgr", "-i", "add", "account", "research", "Cluster=testbed"])
        login.run(["sacctmgr", "-i", "add", "user", ",".join(layout.USERS), "Account=research", "Cluster=testbed"])
        commands.write(done, "")
    login.run(["slurmctld"])
    commands.wait_until("answer of slurmctld", lambda: "UP" in login.run(["scontrol", "ping"], check=False).stdout, 20)


def _start_database(login: host.Host) -> None:
    folder = "/var/lib/mysql"
    fresh = not os.path.exists(f"{login.disk}/mysql/mysql")
    if fresh:
        login.run(["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={folder}", "--skip-test-db"], timeout=120)
    login.run(["install", "-d", "-o", "mysql", os.path.dirname(_MARIADB_SOCKET)])
    options = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=2"]
    login.run(
        ["sh", "-c", 'exec setsid --fork "$@" >/var/log/slurm/mariadb.log 2>&1', "sh"]
        + ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}", f"--socket={_MARIADB_SOCKET}", *options]
    )
    client = ["mariadb", "-S", _MARIADB_SOCKET, "-e"]
    commands.wait_until("answer of MariaDB", lambda: login.run([*client, "select 1"], check=False).returncode == 0, 60)
    if fresh:
        statements = [
            "create database slurm_acct_db",
            "create user slurm@localhost identified via unix_socket",
            "grant all on slurm_acct_db.* to slurm@localhost",
        ]
        login.run([*client, "; ".join(statements)])


def start_node(node: host.Host) -> None:
    node.run(["slurmd"])


def states(login: host.Host) -> dict[str, str]:
    """Slurm's state of each node, e.g. ``idle`` or ``down*``. Raises TestbedError when slurmctld does not answer."""
    out = login.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"]).stdout
    return dict(line.split() for line in out.splitlines())


def wait_ready(login: host.Host, nodes: list[str], timeout: float = 60) -> None:
    """Wait until these nodes accept jobs."""
    ready = ("idle", "mixed", "allocated")
    commands.wait_until(
        f"Slurm nodes {', '.join(nodes)} ready", lambda: all(states(login).get(node) in ready for node in nodes), timeout, pause=0.1
    )
