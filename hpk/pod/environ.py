"""Start a program with nothing but the environment of a container's environment file that no shell can set.

    python3 -I -S environ.py ENV_FILE [NAME...] -- PROGRAM ARGUMENT...

The first line of ENV_FILE may be ``#environ`` and a JSON object (hpk/kubelet/script.py). NAMEs are kept from the present
environment, and PATH, by which the runtime finds its helpers. The values are in no argument list, unlike with env(1).
"""

from __future__ import annotations

import json
import os
import sys

PREFIX = "#environ "


def main(argv: list[str]) -> int:
    if "--" not in argv[1:] or argv[-1] == "--":
        sys.stderr.write("usage: environ.py ENV_FILE [NAME...] -- PROGRAM ARGUMENT...\n")
        return 2
    split = argv.index("--")
    kept = ["PATH", *argv[1:split]]
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    with open(argv[0], encoding="utf-8") as file:
        line = file.readline()
    if line.startswith(PREFIX):
        environment.update(json.loads(line[len(PREFIX) :]))
    program = argv[split + 1 :]
    try:
        os.execve(program[0], program, environment)  # noqa: S606 - the very purpose
    except OSError as error:
        sys.stderr.write(f"environ.py: {program[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
