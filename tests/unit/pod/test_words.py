"""What the supervisor says must never be what ends it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_survived() -> None:
    code = "from hpk.pod import words; words.say('lost'); import os; os.write(2, b'alive')"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"alive")


def test_says_one_line() -> None:
    code = "from hpk.pod import words; words.say('\\udcff said')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"? said\n"
