"""``python -m hpk.bootstrap.loopback HOSTS COMMAND...``: run a command that sees the file HOSTS as /etc/hosts.

A daemon of Slurm that shall not listen everywhere listens at the address of its host name, with no way to name another one
(slurm.conf(5), NoInAddrAny). Where that name is a network address, the daemons of the private Slurm get a mount namespace in
which it is a loopback address. The command keeps its user and gains no privileges: execve(2) drops them, since the id is not 0.
"""

from __future__ import annotations

import os
import sys

from hpk import sandbox


def main(argv: list[str]) -> int:
    hosts, command = argv[0], argv[1:]
    uid, gid = os.geteuid(), os.getegid()
    try:
        sandbox.unshare(sandbox.CLONE_NEWUSER | sandbox.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        sandbox.mount("none", "/", "none", sandbox.MS_REC | sandbox.MS_PRIVATE)
        sandbox.mount(hosts, "/etc/hosts", "none", sandbox.MS_BIND)
        os.execv(command[0], command)  # noqa: S606 - the very purpose
    except OSError as exc:
        sys.stderr.write(f"cannot give {os.path.basename(command[0])} a host name at loopback: {exc}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
