"""The ``hpk`` command. Each subcommand is a module that is imported only when it is asked for: the command stays quick.

A subcommand module has ``add_arguments(parser)`` and ``run(args) -> int`` (or a coroutine function ``run``).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Sequence

from hpk import __version__, errors, logs, paths
from hpk.slurm import private

#: name -> (module, one line of help)
COMMANDS = {
    "up": ("hpk.bootstrap.up", "submit the control plane's Slurm job and wait until the cluster is ready"),
    "down": ("hpk.bootstrap.down", "end the cluster; its state stays"),
    "status": ("hpk.bootstrap.status", "show what runs and where"),
    "image": ("hpk.image", "images of Pods: list, pull, prune; the control-plane image: build"),
    "slurm": ("hpk.bootstrap.private_slurm", "a private single-user Slurm where the site has none"),
    "render": ("hpk.kubelet.render", "print the job script of a Pod without submitting it"),
    "control-plane": ("hpk.bootstrap.main", "run the control plane here (this is what slurm/hpk.sbatch does)"),
    "kubelet": ("hpk.kubelet.main", "run the virtual kubelet (started by the control plane)"),
    "scheduler": ("hpk.scheduler.main", "run the pass-through scheduler (started by the control plane)"),
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpk", description="Kubernetes for a user of an HPC cluster.")
    parser.add_argument("--version", action="version", version=f"hpk {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("-v", "--verbose", action="store_true", help="log more")
        if name == command:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hpk``; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        args = _parser(command).parse_args(words)
        logs.setup(args.verbose)
        os.environ.update(private.environment(paths.Paths.default(), os.environ))
        run = importlib.import_module(COMMANDS[args.command][0]).run
        result = asyncio.run(run(args)) if inspect.iscoroutinefunction(run) else run(args)
        return int(result or 0)
    except errors.HPKError as exc:
        print(f"hpk: error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader (head, less) went away: not our fault
        return 141
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
