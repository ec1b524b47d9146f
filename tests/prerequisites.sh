#!/bin/sh
# Says in one line what this machine lacks, before anything is installed. Called by make.
PYTHON=${PYTHON:-python3}
fail() {
	echo "bloodcell: $1" >&2
	exit 2
}
command -v "$PYTHON" >/dev/null 2>&1 || fail "$PYTHON is missing: install Python 3.11 to 3.13 (Debian: apt-get install python3)"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
	fail "$PYTHON is $("$PYTHON" -V 2>&1): Python 3.11 to 3.13 is needed (choose another with make PYTHON=...)"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
	fail "Python's venv is missing (Debian: apt-get install python3-venv)"
command -v g++ >/dev/null 2>&1 || fail "a C++ compiler is missing (Debian: apt-get install g++)"
[ -f "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] ||
	fail "Python's headers are missing (Debian: apt-get install python3-dev)"
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 12 ] || fail "$free GiB of disk are free here, about 12 are needed"
