#!/usr/bin/env bash
# build-modules.sh: builds dm-dst.ko for every kernel we support, with warnings as errors and sparse, and
# says for each what became of it. Called by the Makefile and .ci/run. A kernel that can't be downloaded is
# reported as skipped, never as built. Ends with the line "N passed, N failed, N skipped".
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
passed=0 failed=0 skipped=0

for kernel in 6.1 6.12 sid; do
    "$here/build-module.sh" "$kernel" --sparse
    case $? in
    0) echo "ok module.$kernel" && passed=$((passed + 1)) ;;
    77) echo "SKIPPED module.$kernel: this kernel could not be had" && skipped=$((skipped + 1)) ;;
    *) echo "FAIL module.$kernel" && failed=$((failed + 1)) ;;
    esac
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
