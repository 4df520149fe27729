"""``hpk slurm``: a private Slurm of one user on one machine, for a laptop or a virtual machine where there is none.

munged, slurmctld and slurmd run as the user, on loopback, with all files below ~/.hpk/slurm/HOST (0700). ``up`` may be repeated:
what runs is kept, what died is started again, and jobs survive both. HPK's own commands find this Slurm by themselves
(hpk/slurm/private.py); Slurm's commands need ``eval "$(hpk slurm env)"``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import itertools
import os
import pwd
import shlex
import socket
import time
from collections.abc import Iterator
from typing import Any

from hpk import errors, files, paths, procs
from hpk.bootstrap import private_slurm_conf as conf
from hpk.bootstrap import private_slurm_daemons as daemons
from hpk.bootstrap import statedir
from hpk.slurm import private as finder

READY_SECONDS = 30.0
#: Seconds that a Slurm command may take to say that its controller is away.
COMMAND_SECONDS = 15.0
_ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED")
#: First port to try: below those that the kernel gives to outgoing connections (ip(7), ip_local_port_range).
PORT_BASE, PORT_END = 20000, 32000
#: sun_path of unix(7) has 108 bytes; slurmstepd's sockets have the longest names in the spool folder.
MAX_PATH = 108 - len("/spool/HOST_4294967295.4294967295") - 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="action", metavar="up|down|status|env", required=True)
    up = sub.add_parser("up", help="start it, or what of it does not run")
    up.add_argument("--cpus", type=int, metavar="N", help="CPUs to declare, real or not (default: 4 times the real ones, at least 8)")
    up.add_argument("--force", action="store_true", help="also where this machine has a Slurm that answers")
    down = sub.add_parser("down", help="stop it; queued jobs and settings stay")
    down.add_argument("--cancel", action="store_true", help="end its running jobs first")
    sub.add_parser("status", help="show its daemons, its node and its jobs")
    sub.add_parser("env", help="print the line that makes sbatch, squeue, ... use it")


def run(args: argparse.Namespace) -> int:
    where = paths.Paths.default()
    private = finder.folder(where)
    if args.action == "env":
        return _env(private)
    if args.action == "status":
        return _status(private)
    if args.action == "down":
        return _down(private, cancel=args.cancel)
    if args.cpus is not None and not 1 <= args.cpus <= 4096:
        raise errors.InvalidInput(f"--cpus: {args.cpus} is not between 1 and 4096")
    return _up(where, private, cpus=args.cpus, force=args.force)


def _command(private: paths.SlurmDir, *argv: str) -> procs.Completed:
    """Run a Slurm command against the private Slurm. Raises ProcessError when it does not answer."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SQUEUE", "SINFO", "SCANCEL"))}
    return procs.run(argv, env={**env, "SLURM_CONF": private.conf}, timeout=COMMAND_SECONDS)


def _export(private: paths.SlurmDir) -> str:
    conf_file = private.client_conf if os.path.exists(private.client_conf) else private.conf
    return f"export SLURM_CONF={shlex.quote(conf_file)}"


def _env(private: paths.SlurmDir) -> int:
    if not finder.daemon_pid(private, "slurmctld"):
        raise errors.StateError(f"no private Slurm runs on {finder.host()}", hint="`hpk slurm up` starts it")
    print(_export(private))
    return 0


@contextlib.contextmanager
def _locked(private: paths.SlurmDir) -> Iterator[None]:
    """One at a time starts or stops daemons."""
    with open(os.open(private.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.StateError("another `hpk slurm up` or `hpk slurm down` is at work") from None
        except OSError:
            pass  # a file system without locks: the user has to take care
        yield


def refuse_beside_another(private: paths.SlurmDir) -> None:
    """Raise StateError when a Slurm that is not ours answers on this machine."""
    env = dict(os.environ)
    if env.get("SLURM_CONF") == private.conf:
        del env["SLURM_CONF"]
    try:
        answer = procs.run([daemons.find("sinfo") or "sinfo", "--noheader", "--format=%R"], env=env, timeout=COMMAND_SECONDS)
    except errors.ProcessError:
        return
    if answer.returncode == 0:
        partitions = ", ".join(answer.stdout.split()) or "none"
        raise errors.StateError(
            f"this machine has a Slurm already (partitions: {partitions}); HPK uses that one",
            hint="--force starts a private one all the same",
        )


def loopback_address(name: str) -> str | None:
    """Return the IPv4 loopback address of host name ``name``, or None when it leads elsewhere or nowhere."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return None
    address = str(found[0][4][0])
    return address if ipaddress.ip_address(address).is_loopback else None


def free_port(start: int, address: str, taken: set[int]) -> int:
    """Return the first port from ``start`` on that nobody has at ``address``. Raises StateError."""
    for port in itertools.chain(range(start, PORT_END), range(PORT_BASE, start)):
        if port in taken:
            continue
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((address, port))
            except OSError:
                continue  # somebody has it
        return port
    raise errors.StateError(f"no free port at {address} between {PORT_BASE} and {PORT_END}")


def _settings(private: paths.SlurmDir, address: str, cpus: int | None) -> dict[str, int]:
    """Return CPUs, memory and ports: those of the last run where they can be kept. A port of a daemon that runs is its own.

    Raises StateError for a change that would end running jobs.
    """
    try:
        last: Any = files.read_json(private.settings)
    except (OSError, ValueError):
        last = None
    last = {name: value for name, value in last.items() if isinstance(value, int)} if isinstance(last, dict) else {}
    real = len(os.sched_getaffinity(0))
    busy = daemons.has_running_steps()
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = conf.memory_mb(file.read())
    settings = {
        "cpus": cpus or last.get("cpus") or conf.default_cpus(real),
        "memoryMB": last.get("memoryMB", memory) if busy else memory,
    }
    if busy and settings["cpus"] != last.get("cpus", settings["cpus"]):
        raise errors.StateError(
            f"--cpus: the node's CPUs ({last['cpus']}) cannot be changed while jobs run: Slurm would end them",
            hint="`hpk slurm down --cancel` ends them and stops; settings can be changed by the next `hpk slurm up`",
        )
    # Users begin at different places, so that two who start at once do not race for the same ports.
    start = PORT_BASE + os.getuid() * 2 % (PORT_END - PORT_BASE)
    for daemon in ("slurmctld", "slurmd"):
        key = f"{daemon}Port"
        if finder.daemon_pid(private, daemon) and key in last:
            settings[key] = last[key]
        else:
            settings[key] = free_port(last.get(key, start), address, set(settings.values()))
    return settings


def _write(private: paths.SlurmDir, machine: conf.Machine, *, hosts_file: bool) -> bool:
    """Write all configuration; tell whether slurm.conf differs from what running daemons have read."""
    for path in (private.root, os.path.dirname(private.conf), private.state, private.spool, private.run, private.logs):
        files.private_dir(path)
        os.chmod(path, 0o700)
    daemons.ensure_key(private)
    if hosts_file:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            original = file.read()
        full = socket.gethostname()
        files.write_atomic(private.hosts, conf.hosts(original, list(dict.fromkeys([full, machine.host]))))
    release = conf.version(procs.run([daemons.find("slurmctld") or "slurmctld", "-V"], timeout=COMMAND_SECONDS).stdout)
    if conf.needs_cgroup_conf(release):
        files.write_atomic(private.cgroup_conf, conf.CGROUP_CONF)
    text = conf.slurm_conf(private, machine)
    try:
        with open(private.conf, encoding="utf-8") as file:
            changed = file.read() != text
    except FileNotFoundError:
        changed = True
    files.write_atomic(private.conf, text)
    if hosts_file:
        files.write_atomic(private.client_conf, conf.client_conf(text))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(private.client_conf)
    return changed


def _up(where: paths.Paths, private: paths.SlurmDir, *, cpus: int | None, force: bool) -> int:
    if os.getuid() == 0:
        raise errors.InvalidInput("hpk slurm up: not as root: every Pod would run as root", hint="run it as an ordinary user")
    if not force and not finder.daemon_pid(private, "slurmctld") and daemons.find("sinfo"):
        refuse_beside_another(private)
    daemons.check_programs()
    if len(os.fsencode(private.root)) > MAX_PATH:
        raise errors.StateError(
            f"{private.root} is too long for the sockets in it ({MAX_PATH} bytes at most)",
            hint="choose a shorter state directory by HPK_HOME=...",
        )
    statedir.prepare(where)
    files.private_dir(private.root)
    with _locked(private):
        began = time.monotonic()
        address = loopback_address(socket.gethostname())
        hosts_file = address is None
        settings = _settings(private, address or "127.0.0.1", cpus)
        user = pwd.getpwuid(os.getuid()).pw_name
        machine = conf.Machine(
            host=finder.host(),
            address=address or "127.0.0.1",
            user=user,
            cpus=settings["cpus"],
            memory_mb=settings["memoryMB"],
            slurmctld_port=settings["slurmctldPort"],
            slurmd_port=settings["slurmdPort"],
        )
        changed = _write(private, machine, hosts_file=hosts_file)
        files.write_json(private.settings, settings)
        was_off = not finder.daemon_pid(private, "slurmd") and not daemons.has_running_steps()
        started = _start(private, daemons.commands(private, machine.host, hosts_file=hosts_file), restart=changed)
        _wait_ready(private)
        if was_off and _jobs(private, "RUNNING"):
            _fail_node(private, machine.host)
        what = f"started {', '.join(started)} in {time.monotonic() - began:.1f} s" if started else "it runs already"
    print(f"private Slurm on {machine.host}: {machine.cpus} CPUs declared, {machine.memory_mb} MB, partition main; {what}")
    print(_export(private))
    return 0


def _start(private: paths.SlurmDir, commands: dict[str, list[str]], *, restart: bool) -> list[str]:
    """Start what does not run; with ``restart`` let slurmctld and slurmd read a new slurm.conf. Jobs run on meanwhile."""
    if restart:
        for daemon in ("slurmd", "slurmctld"):
            daemons.stop(private, daemon)
    started = []
    try:
        for daemon in finder.DAEMONS:
            if not finder.daemon_pid(private, daemon):
                daemons.start(private, daemon, commands[daemon])
                started.append(daemon)
        daemons.check_loopback(private)
    except errors.HPKError:
        for daemon in reversed(started):
            daemons.stop(private, daemon)
        raise
    return started


def _wait_ready(private: paths.SlurmDir) -> None:
    """Wait until the node takes jobs. Raises StateError with what Slurm says of it."""
    deadline = time.monotonic() + READY_SECONDS
    said = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = _command(private, "sinfo", "--noheader", "--format=%T %E")
        except errors.ProcessError as exc:
            said = exc.message
            continue
        said = (answer.stdout or answer.stderr).strip()
        if answer.returncode == 0 and said.split(" ")[0] in ("idle", "mixed", "allocated", "completing"):
            return
        time.sleep(0.05)
    raise errors.StateError(f"the private Slurm takes no jobs: {said}", hint=f"logs: {private.logs}")


def _fail_node(private: paths.SlurmDir, host: str) -> None:
    """Tell slurmctld that the jobs which it remembers as running are gone, as after a power failure.

    By itself it notices only that the kernel was booted anew, which it was not where a container or a virtual machine's daemons were
    killed.
    """
    update = ("scontrol", "update", f"NodeName={host}")
    _command(private, *update, "State=down", "Reason=started anew").check()
    _command(private, *update, "State=resume")  # refused when slurmd has just registered: then the node is back already
    _wait_ready(private)


def _jobs(private: paths.SlurmDir, *states: str) -> list[str]:
    """Ids of the jobs in these states; empty when slurmctld does not run or answer."""
    if not finder.daemon_pid(private, "slurmctld"):
        return []
    try:
        answer = _command(private, "squeue", "--noheader", "--format=%i", f"--states={','.join(states)}")
    except errors.ProcessError:
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def _down(private: paths.SlurmDir, *, cancel: bool) -> int:
    if not os.path.isdir(private.root) or not any(finder.daemon_pid(private, daemon) for daemon in finder.DAEMONS):
        print(f"no private Slurm runs on {finder.host()}")
        return 0
    with _locked(private):
        jobs = _jobs(private, *_ACTIVE)
        if jobs and not cancel:
            raise errors.StateError(
                f"{len(jobs)} jobs run in it ({' '.join(jobs[:10])})",
                hint="end the cluster by `hpk down --pods` first, or add --cancel to end them all",
            )
        if jobs:
            _command(private, "scancel", "--full", *jobs)
        deadline = time.monotonic() + 60
        while jobs and _jobs(private, *_ACTIVE) and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(finder.DAEMONS):
            daemons.stop(private, daemon)
    print(f"private Slurm on {finder.host()} stopped")
    return 0


def _status(private: paths.SlurmDir) -> int:
    pids = {daemon: finder.daemon_pid(private, daemon) for daemon in finder.DAEMONS}
    for daemon, pid in pids.items():
        print(f"{daemon:<10} {f'process {pid}' if pid else 'does not run'}")
    if not pids["slurmctld"]:
        return 1
    for argv in (["sinfo", "--format=%N: %T, %c CPUs declared (%C used/idle/other/total), %m MB", "--noheader"], ["squeue"]):
        try:
            answer = _command(private, *argv)
        except errors.ProcessError as exc:
            raise errors.SlurmUnknown(exc.message) from exc
        print((answer.stdout or answer.stderr).rstrip())
    print(_export(private))
    return 0 if all(pids.values()) else 1
