"""Named points at which the fault tests end this process like a power failure would.

``HPK_FAULT_FILE`` in the environment names a file; when it holds the name of a point, the process that comes there removes the file
and dies. Once: its successor passes. Without the variable nothing is read.
"""

from __future__ import annotations

import os
import signal

_file = os.environ.get("HPK_FAULT_FILE", "")

#: The points, in the order in which one Pod passes them.
POINTS = (
    "before-submitting",
    "before-sbatch",
    "after-sbatch",
    "after-submitted",
    "before-final-status",
    "after-final-status",
    "before-delete",
    "before-remove",
)


def point(name: str) -> None:
    """Die here, when the fault tests ask for it."""
    if _file and _armed(name):
        os.kill(os.getpid(), signal.SIGKILL)


def _armed(name: str) -> bool:
    try:
        with open(_file, encoding="ascii") as file:
            if file.read().strip() != name:
                return False
        os.unlink(_file)
    except OSError:
        return False
    return True
