"""Command line of the test bed: ``python -m tests.testbed --help``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.testbed import bed, commands, golang, layout, packages


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.testbed", description="A virtual HPC cluster on this machine; see tests/testbed."
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    install = sub.add_parser("packages", help="install what the bed needs, and Go")
    install.add_argument("--demo", action="store_true", help="only what a user's own cluster on this machine needs (make demo)")
    up = sub.add_parser("up", help="make the bed, or switch on its hosts that are off")
    up.add_argument("--nodes", type=int, help="number of compute hosts (default: 3)")
    run = sub.add_parser("run", help="run a command as a user, in their home")
    run.add_argument("--host", default=layout.LOGIN)
    run.add_argument("--user", default="alice", help=f"one of {', '.join(layout.USERS)}")
    run.add_argument("argv", nargs="*", metavar="-- CMD", default=["bash", "-l"], help="default: a login shell")
    execute = sub.add_parser("exec", help="run a command as root")
    execute.add_argument("--host", default=layout.LOGIN)
    execute.add_argument("--root", action="store_true", help="as root, which is the only way: said to be clear")
    execute.add_argument("argv", nargs="+", metavar="-- CMD")
    for name, text in (("kill-host", "power failure of a host"), ("start-host", "switch a host on again")):
        sub.add_parser(name, help=text).add_argument("host")
    down = sub.add_parser("down", help="end everything that runs in the bed")
    down.add_argument("--wipe", action="store_true", help="remove homes, accounting and job state too")
    sub.add_parser("status", help="show the hosts")
    return parser


def _status(cluster: bed.Bed) -> int:
    states = cluster.status()
    print(f"test bed {cluster.layout.name}: {'up' if states else 'down'}")
    for name, state in states.items():
        print(f"  {name:8} {state}")
    return 0 if states else 1


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    cluster = bed.Bed()
    began = time.monotonic()
    match args.command:
        case "packages":
            packages.ensure(packages.DEMO if args.demo else packages.BED)
            golang.ensure()
        case "up":
            cluster.up(args.nodes)
            commands.say(f"{cluster.layout.name} is up: {', '.join(cluster.hosts)} ({time.monotonic() - began:.1f} s)")
        case "run" | "exec":
            line = cluster.argv(args.argv, host=args.host, user="root" if args.command == "exec" else args.user)
            os.execvp(line[0], line)  # the terminal, signals and the exit code are the command's own
        case "kill-host":
            cluster.kill_host(args.host)
        case "start-host":
            cluster.start_host(args.host)
        case "down":
            cluster.down(wipe=args.wipe)
        case "status":
            return _status(cluster)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except commands.TestbedError as exc:
        sys.exit(f"testbed: {exc}")
