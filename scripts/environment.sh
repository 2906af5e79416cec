#!/usr/bin/env bash
# Makes the virtual environment when it is missing or out of date, and puts it first on PATH.
# The other scripts source it; `bash scripts/environment.sh` only makes the environment.
#
#   XYLEM_VENV     its folder   (default: .venv at the root of this checkout)
#   XYLEM_PYTHON   the Python that makes it   (default: the first of python3, python3.13, python3.12,
#                  python3.11 that is 3.11 or newer)
#
# Nothing is installed while setup.py, pyproject.toml, constraints.txt and the checkout's place are
# those of the last time. Several scripts may start at once: one installs, the others wait for it.

XYLEM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
XYLEM_VENV=${XYLEM_VENV:-$XYLEM_ROOT/.venv}
case $XYLEM_VENV in /*) ;; *) XYLEM_VENV=$PWD/$XYLEM_VENV ;; esac
export XYLEM_ROOT XYLEM_VENV

if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    # Sourced: a process of its own makes the environment, so that its `set -e` and its traps are
    # not the caller's.
    bash "${BASH_SOURCE[0]}" || return
    export VIRTUAL_ENV=$XYLEM_VENV
    case :$PATH: in ":$XYLEM_VENV/bin:"*) ;; *) export PATH=$XYLEM_VENV/bin:$PATH ;; esac
    return 0
fi

set -euo pipefail
python=$XYLEM_VENV/bin/python
stamp=$XYLEM_VENV/xylem-stamp
log=$XYLEM_VENV.log # beside the folder: venv --clear empties it; it is the lock as well

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate seen=
    for candidate in ${XYLEM_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if recent_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
        seen="$seen $candidate = $("$candidate" -V 2>&1 | tail -n 1),"
    done
    echo "xylem: needs Python 3.11 or newer, found${seen:- none,} and nothing newer;" \
        "install one, or name it: XYLEM_PYTHON=/path/to/python3.11" >&2
    return 2
}

# What the environment was made from; another value means: install again.
fingerprint() {
    "$python" - "$XYLEM_VENV" "$XYLEM_ROOT" setup.py pyproject.toml constraints.txt <<'PY'
import hashlib
import sys
from pathlib import Path

venv, root, *recipes = sys.argv[1:]
digest = hashlib.sha256(repr((venv, root, sys.version)).encode())
for recipe in recipes:
    digest.update(Path(root, recipe).read_bytes())
print(digest.hexdigest())
PY
}

current() {
    recent_enough "$python" && [ -s "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]
}

# live TITLE COMMAND...: its output goes to the log; on a terminal one line is renewed every second,
# elsewhere a new line comes every ten.
live() {
    local title=$1 started=$SECONDS code=0 last pid
    shift
    printf '  %s\n' "$title" >&2
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        last=$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-70)
        if [ -t 2 ]; then
            printf '\r\033[K    %3ds  %s' $((SECONDS - started)) "$last" >&2
        elif [ $(((SECONDS - started) % 10)) -eq 0 ]; then
            printf '    %3ds  %s\n' $((SECONDS - started)) "$last" >&2
        fi
    done
    wait "$pid" || code=$?
    trap - INT TERM
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    if [ "$code" -ne 0 ]; then
        tail -n 20 "$log" >&2
        echo "xylem: failed (exit code $code): $title; the whole log is $log" >&2
        exit 1
    fi
}

pip_install() {
    "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        -c constraints.txt "$@"
}

if current; then exit 0; fi
maker=$(find_python)
mkdir -p "$(dirname "$XYLEM_VENV")"
exec 9>>"$log"
# The lock belongs to the open file, so it outlives the Python that asks for it, until we end.
lock() { "$maker" -c "import fcntl; fcntl.flock(9, $1)" 2>/dev/null; }
if ! lock 'fcntl.LOCK_EX | fcntl.LOCK_NB'; then
    echo "  another script is making $XYLEM_VENV: waiting for it" >&2
    lock fcntl.LOCK_EX
    if current; then exit 0; fi
fi

if [ -e "$XYLEM_VENV" ] && [ ! -e "$XYLEM_VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$XYLEM_VENV")" ]; then
    echo "xylem: XYLEM_VENV=$XYLEM_VENV is neither empty nor a virtual environment;" \
        "move it away or name another folder" >&2
    exit 2
fi
cd "$XYLEM_ROOT"
if ! recent_enough "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    live "environment 1/3: $("$maker" -V) in $XYLEM_VENV" "$maker" -m venv --clear "$XYLEM_VENV"
fi
rm -f "$stamp"
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
live "environment 2/3: $torch" pip_install "$torch"
live "environment 3/3: xylem, its demo and its tests" pip_install -e '.[demo,test]'
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
