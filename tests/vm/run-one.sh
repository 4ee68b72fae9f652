#!/usr/bin/env bash
# Runs one test function in a process of its own: run-one.sh FILE FUNCTION [ARG...]. Started by agent.sh (and bench/run.sh)
# with STATE (its notes for the agent) and T (a scratch directory) set. Exit status 0 passed, 77 skipped, 88 wants a
# reboot, anything else failed, with the reason in $STATE/why.
set -Eeuo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/vm/lib.sh
source "$here/lib.sh"

# Only the first reason counts: what follows it is its consequence.
note_error() {
    local status=$1 line=$2 command=$3 file=$4
    [[ -s $STATE/why ]] || echo "${file##*/}:$line: '$command' ended with status $status" >"$STATE/why"
}
trap 'note_error "$?" "$LINENO" "$BASH_COMMAND" "${BASH_SOURCE[0]}"' ERR

exec 9>>"$TRACE"
BASH_XTRACEFD=9
PS4='+ ${BASH_SOURCE##*/}:${LINENO}: '
# shellcheck source=/dev/null
source "$1"
set -x
"${@:2}"
