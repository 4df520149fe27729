"""The three daemons of the private Slurm: start, stop, and a look at where they listen."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import struct
import sys
import time

from hpk import errors, files, paths, procs
from hpk.bootstrap import logfiles
from hpk.slurm import private as finder

START_SECONDS = 20.0
STOP_SECONDS = 10.0
#: Where daemons are that an ordinary user's PATH may lack.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Program -> Debian's package, Fedora's and EPEL's package.
PACKAGES = {
    "munged": ("munge", "munge"),
    "slurmctld": ("slurmctld", "slurm-slurmctld"),
    "slurmd": ("slurmd", "slurm-slurmd"),
    "sbatch": ("slurm-client", "slurm"),
    "sinfo": ("slurm-client", "slurm"),
    "squeue": ("slurm-client", "slurm"),
    "scancel": ("slurm-client", "slurm"),
}


def find(program: str) -> str | None:
    """Path of a program on PATH or where administrators' programs are."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def check_programs() -> None:
    """Raise MissingTool that names all programs that are not here, and the line that installs them."""
    missing = [program for program in PACKAGES if not find(program)]
    if missing:
        kind = 1 if shutil.which("dnf") else 0
        packages = " ".join(dict.fromkeys(PACKAGES[program][kind] for program in missing))
        line = f"dnf install {packages}" if kind else f"apt-get install --no-install-recommends {packages}"
        raise errors.MissingTool(f"not installed: {', '.join(missing)}", hint=f"as root: {line}")


def environment() -> dict[str, str]:
    """Environment of the daemons: nothing of the caller's Slurm settings."""
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "LANG", "TZ") if name in os.environ}
    return {**kept, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])}


def commands(private: paths.SlurmDir, host: str, *, hosts_file: bool) -> dict[str, list[str]]:
    """Return the daemons' command lines."""
    munged = [
        *(find("munged") or "munged", "--force"),  # it wants folders that others may enter; ours are ours alone
        *(f"--socket={private.munge_socket}", f"--key-file={private.munge_key}", f"--seed-file={private.munge_seed}"),
        *(f"--pid-file={private.pid('munged')}", f"--log-file={private.log('munged')}", "--num-threads=2"),
    ]
    slurmctld = [find("slurmctld") or "slurmctld", "-f", private.conf]
    slurmd = [find("slurmd") or "slurmd", "-f", private.conf, "-N", host]
    if hosts_file:
        inside = [sys.executable, "-m", "hpk.bootstrap.loopback", private.hosts]
        slurmctld, slurmd = [*inside, *slurmctld], [*inside, *slurmd]
    return {"munged": munged, "slurmctld": slurmctld, "slurmd": slurmd}


def start(private: paths.SlurmDir, daemon: str, argv: list[str]) -> int:
    """Start a daemon, wait until it runs and return its process id. Raises StateError with its last words."""
    env = environment()
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if "hpk.bootstrap.loopback" in argv:
        env["PYTHONPATH"] = package_root
    try:
        done = procs.run(argv, env=env, cwd=private.root, timeout=START_SECONDS)
    except errors.ProcessError as exc:
        raise errors.StateError(exc.message, hint=f"log: {private.log(daemon)}") from exc
    deadline = time.monotonic() + START_SECONDS
    while done.returncode == 0 and time.monotonic() < deadline:
        pid = finder.daemon_pid(private, daemon)
        if pid and (daemon != "munged" or os.path.exists(private.munge_socket)):
            return pid
        time.sleep(0.02)
    words = logfiles.last_words(private.log(daemon)) or " ".join(done.stderr.split())
    raise errors.StateError(f"{daemon} does not start" + (f": {words}" if words else ""), hint=f"log: {private.log(daemon)}")


def stop(private: paths.SlurmDir, daemon: str) -> bool:
    """Stop a daemon and wait for its end; False: it did not run."""
    pid = finder.daemon_pid(private, daemon)
    if not pid:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while finder.daemon_pid(private, daemon) == pid or _alive(pid, daemon):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline += STOP_SECONDS
        time.sleep(0.02)
    return True


def _alive(pid: int, daemon: str) -> bool:
    """Tell whether ``pid`` is still that daemon: the pid file goes away before the process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.path.basename(os.fsdecode(file.read().split(b"\0")[0])) == daemon
    except OSError:
        return False


def has_running_steps() -> bool:
    """Tell whether a job of the user still has its slurmstepd on this machine: it outlives slurmd."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                with open(f"/proc/{name}/cmdline", "rb") as file:  # empty for a zombie
                    if file.read().startswith(b"slurmstepd:"):
                        return True
        except OSError:
            continue  # it ended just now
    return False


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses and ports at which process ``pid`` listens for TCP (/proc/net/tcp, proc(5))."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed just now
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                lines = [line.split() for line in file][1:]
        except OSError:
            continue  # a kernel without IPv6
        for words in lines:
            if words[3] == "0A" and words[9] in inodes:
                found.append(_endpoint(words[1]))
    return found


def _endpoint(text: str) -> tuple[str, int]:
    """Address and port of "0100007F:1A2B": words of the host's byte order, then the port."""
    address, _, port = text.partition(":")
    raw = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(port, 16)


def check_loopback(private: paths.SlurmDir) -> None:
    """Raise StateError when a daemon listens anywhere else than on loopback."""
    for daemon in finder.DAEMONS:
        pid = finder.daemon_pid(private, daemon)
        for address, port in listening(pid) if pid else []:
            if not ipaddress.ip_address(address).is_loopback:
                raise errors.StateError(
                    f"{daemon} listens at {address}:{port}, not on loopback: the host name {socket.gethostname()} leads there",
                    hint="add the host name to the line of 127.0.0.1 in /etc/hosts, with `files` first in the hosts line of nsswitch.conf",
                )


def ensure_key(private: paths.SlurmDir) -> None:
    """Make the munge key, 1024 random bits."""
    if not os.path.exists(private.munge_key):
        files.write_atomic(private.munge_key, os.urandom(128), mode=0o600, sync=True)
