"""Named points at which the fault tests end this process like a power failure would.

``HPK_FAULT=<name>`` or ``HPK_FAULT=<name>:<n>`` (the n-th passage) in the environment arms one of them. Nothing else reads it.
"""

from __future__ import annotations

import os
import signal

_name, _, _count = os.environ.get("HPK_FAULT", "").partition(":")
_left = int(_count) if _count.isdigit() else 1

#: The points, in the order in which one Pod passes them.
POINTS = (
    "before-submitting",
    "before-sbatch",
    "after-sbatch",
    "after-submitted",
    "before-final-status",
    "after-final-status",
    "before-delete",
)


def point(name: str) -> None:
    """Die here, when the environment asks for it."""
    global _left
    if _name and name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
