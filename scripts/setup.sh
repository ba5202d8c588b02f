#!/usr/bin/env bash
# What `make setup` does: system packages, virtual environment, Python packages, doctor. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"
APT="${APT:-build-essential python3-dev python3-venv libgl1 libopengl0 libegl1}"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# 1. System packages (Debian and Ubuntu; elsewhere the doctor says at the end what is missing).
if command -v dpkg-query >/dev/null; then
    missing=""
    for package in $APT; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        if [ "$(id -u)" -eq 0 ]; then
            say "system packages:$missing"
            export DEBIAN_FRONTEND=noninteractive
            apt-get update -q </dev/null
            # shellcheck disable=SC2086
            apt-get install -q -y --no-install-recommends $missing </dev/null
        else
            die "system packages are missing. Run this, then 'make setup' again:
    sudo apt-get update && sudo apt-get install -y$missing"
        fi
    fi
else
    say "not a Debian system: make sure of a C compiler, Python headers, libGL, libOpenGL and libEGL yourself"
fi

# 2. An interpreter. A venv that is already there and new enough is kept.
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
if ! { [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c "$new_enough" 2>/dev/null; }; then
    command -v "$PYTHON" >/dev/null || die "$PYTHON not found; install Python 3.11 or newer, or: make setup PYTHON=/path/to/python3.11"
    "$PYTHON" -c "$new_enough" || die "$("$PYTHON" --version 2>&1) is too old; spinefit needs 3.11 or newer: make setup PYTHON=/path/to/python3.11"
    say "virtual environment $VENV from $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV" </dev/null
fi

# 3. Python packages, at the versions of scripts/constraints.txt.
say "Python packages (about 2 GB on disk; 5 to 10 minutes the first time)"
started=$(date +%s)
# SfePy has no wheel: it compiles for 4 to 6 minutes, silently, so say so while it happens.
(
    trap 'kill "$!" 2>/dev/null; exit 0' TERM
    while sleep 60 & wait "$!"; do
        printf '   … still installing after %s s (SfePy is compiled from source: 4-6 minutes)\n' "$(($(date +%s) - started))"
    done
) &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || true' EXIT
"$VENV/bin/python" -m pip install -q --no-input --disable-pip-version-check \
    -c scripts/constraints.txt -e '.[dev]' </dev/null || die "pip failed; the lines above say why. Nothing needs undoing: mend it and run 'make setup' again."
kill "$ticker" 2>/dev/null || true

# 4. Is everything there that the work will need?
say "doctor"
"$VENV/bin/python" scripts/doctor.py

# 5. The compiled solver: 20 s, once; without a compiler it says so and the slower XLA one is used.
say "solver"
"$VENV/bin/python" -c "import logging; logging.basicConfig(format='   %(message)s'); from engine.multigrid.native import library; library.available()"
