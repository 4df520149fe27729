#!/bin/bash
# make install: HPK into a virtual environment in the state directory, and the command `hpk` on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
home=${HPK_HOME:-$HOME/.hpk}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "Python 3.10 or newer with venv is needed ($python: $("$python" -V 2>&1)). Name another one: make install PYTHON=python3.12," >&2
    echo "load a module, or as root: apt-get install python3 python3-venv" >&2
    exit 1
fi
if [ ! -x "$home/venv/bin/python" ]; then
    (umask 077 && mkdir -p "$home")
    "$python" -m venv "$home/venv"
fi
# From a copy: the tree may be another user's, and pip leaves its working files beside the source.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R pyproject.toml README.md hpk slurm containers "$copy"
"$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$copy"
mkdir -p "$HOME/.local/bin"
ln -sfn "$home/venv/bin/hpk" "$HOME/.local/bin/hpk"
echo "installed: $HOME/.local/bin/hpk (in $home/venv)"
case ":$PATH:" in
    *":$HOME/.local/bin:"*) ;;
    *) echo "add it to PATH: export PATH=\"\$HOME/.local/bin:\$PATH\"" ;;
esac
