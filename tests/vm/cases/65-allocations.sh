#!/usr/bin/env bash
# No memory: each allocation inside constructor, resume, status, removal, netlink commands and I/O fails once
# (dst-failnth), and then those of dm-dst's workers at random. The call says so or copes, and leaves nothing behind:
# what stood before stands, and the leaks are looked for when the module goes. Only on the debug kernel.

# shellcheck source=tests/vm/checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/../checks.sh"
# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

DEBUGFS=/sys/kernel/debug
LINE="0 8192 dst 3 alpha 0 4096 beta 8 2048 alpha 4096 2048 1 no_discard"

# need_faults: on the debug kernel; every allocation may fail, also those that could wait for memory.
need_faults() {
    have_checks || skip "a stock kernel injects no faults"
    local attr
    for attr in failslab fail_page_alloc; do
        echo N >$DEBUGFS/$attr/ignore-gfp-wait
        echo 0 >$DEBUGFS/$attr/verbose
    done
    echo N >$DEBUGFS/fail_page_alloc/ignore-gfp-highmem
    echo 0 >$DEBUGFS/fail_page_alloc/min-order
    spare_kmemleak
}

# Each allocation has one of kmemleak's, which has a reserve: a fault there shows nothing and costs as much time.
spare_kmemleak() {
    local first last
    read -r first last < <(sort /proc/kallsyms | awk '$3 == "kmemleak_alloc" { first = $1; next } first != "" && $1 != first { print first, $1; exit }')
    echo "0x$first" >$DEBUGFS/failslab/reject-start
    echo "0x$last" >$DEBUGFS/failslab/reject-end
    echo 32 >$DEBUGFS/failslab/stacktrace-depth
}

# each_allocation CALL COMMAND...: runs COMMAND with the first, second, … allocation of its call failing, until it has no
# further one; after each run `after STATUS`, before each `before` (the test's own functions). A command that fails must
# fail for want of memory. Prints how many were tried, of which it may not be none.
each_allocation() {
    local call=$1 n outcome result failed=0
    shift
    for ((n = 1; n < 400; n++)); do
        before "$n"
        rm -f "$T/report"
        run dst-failnth --at "$call" --nth "$n" --report "$T/report" -- "${@//%N/$n}"
        read -r outcome result <"$T/report" || fail "dst-failnth said nothing: $OUT"
        [[ $outcome != never ]] || fail "no call '$call' in '$*'"
        if ((RC != 0)); then
            [[ $outcome == injected ]] || fail "'$*' failed without a fault: $OUT"
            assert_match "$OUT" "Cannot allocate memory|ENOMEM|No buffer space|ENOBUFS" "the error of fault $n"
            failed=$((failed + 1))
        fi
        after "$RC"
        [[ $outcome == injected ]] || break
    done
    echo "figure: $call of '$1 ${2:-}': $((n - 1)) allocations failed one by one, $failed of them made the call fail (last result $result)"
    ((n > 1)) || fail "'$*' allocates nothing in '$call'"
    ((n < 400)) || fail "'$*' doesn't come to an end"
}

# Also where udev has not yet made its link.
exists() { dmsetup info "$1" >/dev/null 2>&1; }
nodes_known() { dst-nlpoke dump | wc -l; }
no_device_no_node() {
    ! exists dev || assert_ok dmsetup remove --retry dev
    assert_contains "$(dmsetup ls)" "No devices found"
    assert_eq "$(nodes_known)" 0 "nodes without a table"
}

# The constructor: the error is ENOMEM, and neither node nor use stays behind.
# @timeout 300
test_constructor() {
    need_faults
    before() { :; }
    after() { no_device_no_node; }
    each_allocation dm:load dmsetup create dev --noudevsync --table "$LINE"
}

# The same where nodes exist already, by another table.
# @timeout 300
test_constructor_of_a_second_table() {
    need_faults
    assert_ok dmsetup create other --table "$LINE"
    before() { :; }
    after() {
        ! exists dev || assert_ok dmsetup remove --retry dev
        assert_eq "$(dst-nlpoke get node=alpha | jq -r .state) $(nodes_known)" "waiting 2" "the nodes"
    }
    each_allocation dm:load dmsetup create dev --noudevsync --table "$LINE"
    assert_ok dmsetup remove --retry other
    no_device_no_node
}

# Resume, status, table and removal.
# @timeout 400
test_life_of_a_table() {
    need_faults
    before() { :; }
    after() { no_device_no_node; }
    each_allocation dm:suspend dmsetup create dev --noudevsync --table "$LINE"
    before() { exists dev || assert_ok dmsetup create dev --noudevsync --table "$LINE"; }
    after() { :; }
    each_allocation dm:remove dmsetup remove --noudevsync dev
    no_device_no_node
    before 0
    after() { assert_eq "$(dmsetup table dev | wc -l)" 1 "lines of the table"; }
    each_allocation dm:status dmsetup status --noflush dev
    each_allocation dm:status dmsetup table dev
    assert_ok dmsetup remove --retry dev
    no_device_no_node
}

# make_node: 4 MiB behind our own server, without links; dev is the whole of it.
make_node() {
    make_image alpha 4M >/dev/null
    start_export alpha
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
}

links_of() { dst-nlpoke get "node=$1" | jq -rc '[.links[] | select(.state == "live") | "\(.slot):\(.generation)"] | sort | join(" ")'; }
quiesce_of() { dst-nlpoke get "node=$1" | jq .quiesce_ms; }
read_dev() { assert_ok timeout 100 dd if=/dev/mapper/dev of=/dev/null bs=64k count=4 iflag=direct status=none; }

# The hand-over of sockets: all links of the request are in, or none is and the old ones go on.
# @timeout 600
test_hand_over() {
    need_faults
    make_node
    BEFORE=""
    before() { BEFORE=$(links_of alpha); }
    after() {
        if (($1 == 0)) || [[ $(links_of alpha) == "0:$((2 * n)) 1:$((2 * n + 1))" ]]; then
            assert_eq "$(links_of alpha)" "0:$((2 * n)) 1:$((2 * n + 1))" "links after fault $n"
        else
            assert_eq "$(links_of alpha)" "$BEFORE" "links after the refusal by fault $n"
        fi
        [[ -z $(links_of alpha) ]] || read_dev
    }
    hand_over_each
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 20 "the links to go" node_says alpha '.links | length' 0
}

hand_over_each() {
    cat >"$T/hand-over" <<'END'
#!/bin/sh
# hand-over N URI: links of generations 2N and 2N + 1.
exec dst-nlpoke links node=alpha export=4194304 wanted=2 "link=0:$((2 * $1)):nbd@$2" "link=1:$((2 * $1 + 1)):nbd@$2"
END
    chmod +x "$T/hand-over"
    each_allocation netlink "$T/hand-over" %N "$(node_uri alpha)"
}

# Every other command.
# @timeout 600
test_netlink_commands() {
    local words
    need_faults
    make_node
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=2 "link=0:1:nbd@$(node_uri alpha)" "link=1:2:nbd@$(node_uri alpha)"
    before() { :; }
    after() { assert_eq "$(links_of alpha)" "0:1 1:2" "the links"; }
    for words in get dump "set wanted=2" "fenced force" "fail"; do
        # shellcheck disable=SC2086  # words
        set -- $words
        each_allocation netlink dst-nlpoke "$1" node=alpha "${@:2}"
    done
    # what is refused has changed nothing
    before() { BEFORE=$(quiesce_of alpha); }
    after() {
        if (($1)); then
            assert_eq "$(quiesce_of alpha)" "$BEFORE" "quiesce after the refusal by fault $n"
        else
            assert_eq "$(quiesce_of alpha)" "70$n" "quiesce after fault $n"
        fi
    }
    each_allocation netlink dst-nlpoke set node=alpha quiesce=70%N
    read_dev
    # the last one takes them away, whatever the kernel could not say about it
    after() { :; }
    each_allocation netlink dst-nlpoke drop node=alpha force
    wait_until 20 "the links to go" node_says alpha '.links | length' 0
}

# I/O from the process that asks: a write is done or refused, and what was written is read.
# @timeout 400
test_io() {
    need_faults
    make_node
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=1 "link=0:1:nbd@$(node_uri alpha)"
    assert_ok udevadm settle --timeout=60
    make_file "$T/data" 1M
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=1M oflag=direct status=none
    before() { make_file "$T/piece" 64k; }
    after() {
        if (($1 == 0)); then
            assert_ok dd if="$T/piece" of="$T/data" bs=64k seek=3 conv=notrunc status=none
        else
            # who knows; it is as good as overwritten
            assert_ok dd if="$T/data" of=/dev/mapper/dev bs=64k skip=3 seek=3 count=1 oflag=direct conv=notrunc,nocreat status=none
        fi
        assert_ok cmp -n $((1 << 20)) "$T/data" "$(node_image alpha)"
    }
    each_allocation io dd if="$T/piece" of=/dev/mapper/dev bs=64k seek=3 oflag=direct conv=notrunc,nocreat status=none
    after() { :; }
    each_allocation io dd if=/dev/mapper/dev of=/dev/null bs=64k count=1 iflag=direct status=none
}

MANY=1000000

# faults_in_module PERCENT: of the allocations below any function of dm-dst fail, in whatever context.
faults_in_module() {
    local attr first last
    read -r first last < <(module_symbols dm_dst | awk 'NR == 1 { first = $1 } { last = $1 } END { print first, last }')
    for attr in failslab fail_page_alloc; do
        echo "0x$first" >$DEBUGFS/$attr/require-start
        echo "0x$last" >$DEBUGFS/$attr/require-end
        echo 32 >$DEBUGFS/$attr/stacktrace-depth
        echo $MANY >$DEBUGFS/$attr/times
        echo "$1" >$DEBUGFS/$attr/probability
    done
}

# From here on nothing fails by itself, and fail-nth is for everybody again.
faults_end() {
    local attr
    for attr in failslab fail_page_alloc; do
        echo 0 >$DEBUGFS/$attr/probability
        echo 0 >$DEBUGFS/$attr/require-start
        echo 0xffffffffffffffff >$DEBUGFS/$attr/require-end
    done
}

# Every tenth allocation that senders, receivers and ends of links cause fails, while fio verifies and links are replaced.
# @timeout 900
test_workers() {
    local i failed generation=3
    need_faults
    defer "give_up alpha; dmsetup remove --retry dev"
    defer "source $(realpath "${BASH_SOURCE[0]}"); faults_end"
    make_node
    assert_ok dst-nlpoke set node=alpha quiesce=100
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=2 "link=0:1:nbd@$(node_uri alpha)" "link=1:2:nbd@$(node_uri alpha)"
    assert_ok udevadm settle --timeout=60
    start_verify "$(direct_job 2M)"
    faults_in_module 10
    for ((i = 1; i <= 10; i++)); do
        verify_goes_on
        if ((i % 2)); then assert_ok dst-nlpoke drop node=alpha force; fi
        # the hand-over is among what fails
        wait_until 60 "new links" hand_over_next
        wait_until 60 "an answer" node_says alpha '([.links[].received] | add) > 0' true
    done
    faults_end
    failed=$((MANY - $(<$DEBUGFS/failslab/times) + MANY - $(<$DEBUGFS/fail_page_alloc/times)))
    echo "figure: $failed allocations failed below dm-dst"
    ((failed > 20)) || fail "only $failed allocations failed"
    stop_verify
    wait_until 60 "the last fence" field_of_alpha_is 6 0
    assert_images_match "$(images alpha)"
}
field_of_alpha_is() { [[ $(node_field alpha "$1") == "$2" ]]; }
hand_over_next() {
    generation=$((generation + 2))
    dst-nlpoke links node=alpha export=4194304 wanted=2 "link=0:$generation:nbd@$(node_uri alpha)" "link=1:$((generation + 1)):nbd@$(node_uri alpha)"
}
