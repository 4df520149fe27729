"""Make the virtual environment of the tests and linters, and print its folder: ``python3 scripts/venv.py FOLDER``.

It holds what pyproject.toml names, hpk itself not: that is taken from the tree by PYTHONPATH. Made anew when the names change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said in one line instead of by a syntax error later
    sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; 3.10 or newer is needed")

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_READ = """\
import sys
try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print("\\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
"""


def main(folder: str) -> None:
    marker = os.path.join(folder, ".made-from")
    with open(os.path.join(TREE, "pyproject.toml"), "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest() + " " + sys.version
    try:
        with open(marker, encoding="utf-8") as file:
            if file.read() == wanted:
                return
    except FileNotFoundError:
        pass
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = os.path.join(folder, "bin", "python")
    names = subprocess.run([python, "-c", _READ, os.path.join(TREE, "pyproject.toml")], check=True, capture_output=True, text=True).stdout
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *names.split("\n")[:-1]], check=True)
    with open(marker, "w", encoding="utf-8") as file:
        file.write(wanted)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except subprocess.CalledProcessError as exc:
        sys.exit(f"failed: {' '.join(map(str, exc.cmd[:6]))} ...")
    print(sys.argv[1])
