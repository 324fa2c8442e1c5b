#!/usr/bin/env bash
# Installs a wheel in a fresh Debian of another release, without compiler and without network, and
# smoke-tests it there:
#
#     make dist && sudo tests/chroot_smoke.sh trixie dist
#
# It needs root, debootstrap, Python with pip, and about 400 MB below TMPDIR. It runs once, mounts
# nothing, and removes what it made. Not part of CI: containers of the wheels workflow cover that.
set -euo pipefail

if [[ $# -ne 2 ]]; then
    echo "usage: $0 SUITE WHEELS    (for example: $0 trixie dist)" >&2
    exit 2
fi
suite=$1
wheels=$(realpath "$2")
tests=$(dirname "$(realpath "$0")")
machine=$(uname -m)

[[ $(id -u) -eq 0 ]] || { echo "error: debootstrap and chroot need root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "error: no debootstrap; apt install debootstrap" >&2; exit 1; }

root=$(mktemp --directory --tmpdir moshi-chroot.XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT

echo "+ debootstrap $suite"
debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$root" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; exit 1; }
rm "$root.log"

inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin LC_ALL=C.UTF-8 "$@"; }

for compiler in cc gcc clang rustc cargo; do
    if inside sh -c "command -v $compiler"; then
        echo "error: $suite has a compiler" >&2
        exit 1
    fi
done

# Wheels come along, so that the chroot needs no index: the one under test, and NumPy's.
mkdir -p "$root/smoke/wheels" "$root/smoke/tests/golden" "$root/smoke/tests/audio"
cp "$wheels"/*.whl "$root/smoke/wheels/"
python=$(inside python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
platforms=()
for glibc in 2_17 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_$machine"); done
"${PYTHON:-python3}" -m pip download --quiet --only-binary :all: --no-deps \
    --python-version "$python" "${platforms[@]}" --dest "$root/smoke/wheels" numpy

cp "$tests/smoke.py" "$root/smoke/tests/"
cp -r "$tests/golden/dialogue_repo" "$root/smoke/tests/golden/"
cp "$tests/audio/hello.wav" "$root/smoke/tests/audio/"

inside sh -c '. /etc/os-release; echo "+ $PRETTY_NAME, $(python3 --version), no compiler"'
inside python3 -m venv /smoke/venv
inside /smoke/venv/bin/pip install --no-index --only-binary :all: --find-links /smoke/wheels moshi-rs
inside /smoke/venv/bin/python -I -W error /smoke/tests/smoke.py \
    /smoke/tests/golden/dialogue_repo /smoke/tests/audio/hello.wav
