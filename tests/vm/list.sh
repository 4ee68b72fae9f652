#!/usr/bin/env bash
# list.sh [DIR]: the tests of DIR/cases (by default the guest tests), one a line, tab between the fields: NAME FILE
# FUNCTION TIMEOUT EXPECT_FAIL ONLY COMMENT. NAME is "topic.function" of cases/NN-topic.sh. Called on the host by
# `dst-vm run --list` and tests/interop/run, in the guest by agent.sh; runs no test. The comment block above a
# function may hold "@timeout SECONDS", "@expect-fail TEXT" (the test passes only if it fails and its reason or log
# holds TEXT) and "@only faults" or "@only small" (ONLY, else "-": run with --faults only; the latter in a small guest).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")}"

for file in cases/[0-9][0-9]-*.sh; do
    awk -v file="$file" '
        BEGIN { topic = file; sub(/^cases\/[0-9]+-/, "", topic); sub(/\.sh$/, "", topic) }
        /^# @timeout /     { limit = $3; next }
        /^# @expect-fail / { expect = substr($0, 16); next }
        /^# @only /        { only = $3; next }
        /^# /              { if (comment == "") comment = substr($0, 3); next }
        /^test_[A-Za-z0-9_]+\(\)/ {
            name = $1; sub(/\(\).*/, "", name); short = name; sub(/^test_/, "", short)
            printf "%s.%s\t%s\t%s\t%s\t%s\t%s\t%s\n", topic, short, file, name, limit == "" ? 120 : limit,
                expect == "" ? "-" : expect, only == "" ? "-" : only, comment
        }
        { limit = expect = only = comment = "" }
    ' "$file"
done
