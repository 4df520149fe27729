"""Whether the kernel has killed a process of the job for want of memory. Never raises: no evidence is no answer."""

from __future__ import annotations

import os

#: How many cgroups above our own may still be the job's: task, step, job (Slurm's cgroup plugins).
LEVELS = 3


def kills() -> int:
    """Processes killed so far in this process's memory cgroup and those of the job above it."""
    total = 0
    for folder, name in _folders():
        try:
            with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
                for line in file:
                    words = line.split()
                    if len(words) == 2 and words[0] == "oom_kill":
                        total += int(words[1])
        except (OSError, ValueError):
            continue
    return total


def _folders() -> list[tuple[str, str]]:
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            entries = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = [line.split(" ") for line in file]
    except OSError:
        return []
    found: list[tuple[str, str]] = []
    for entry in entries:
        if len(entry) != 3:
            continue
        version2 = entry[1] == ""
        if not version2 and "memory" not in entry[1].split(","):
            continue
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].rstrip("\n").split(",")
            if (version2 and kind == "cgroup2") or (not version2 and kind == "cgroup" and "memory" in options):
                root, point = fields[3], fields[4]
                relative = os.path.relpath(entry[2], root) if entry[2].startswith(root) else entry[2].lstrip("/")
                path = os.path.normpath(os.path.join(point, relative))
                for _ in range(LEVELS + 1):
                    if path == point or not path.startswith(point):
                        break
                    found.append((path, "memory.events.local" if version2 else "memory.oom_control"))
                    path = os.path.dirname(path)
    return found
