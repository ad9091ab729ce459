# Sourced by the other scripts: makes .venv in the checkout and installs pinned versions.
# Usage: extras=sim,prune; . scripts/setup.sh
set -eu
cd "$(dirname "$0")/.."

python=""
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "gshw needs Python >= 3.11: apt-get install python3 python3-venv" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "gshw needs the venv module: apt-get install python3-venv" >&2
    exit 2
fi

stamp=".venv/gshw-$extras-$(cksum < scripts/constraints.txt | tr ' ' '-')-$(cksum < pyproject.toml | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "installing gshw[$extras] into .venv (pinned by scripts/constraints.txt)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".[$extras]"
    touch "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
export PATH
