"""Start of the supervisor: ``python3 -I -S .../hpk/pod/__main__.py PLAN``, the last line of every job script."""

import os
import sys

# -I leaves the script's folder out of sys.path, and the package need not be installed where the job runs
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from hpk.pod import supervisor

if __name__ == "__main__":
    sys.exit(supervisor.main(sys.argv[1:]))
