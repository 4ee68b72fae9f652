#!/usr/bin/env bash
# The netlink family dm-dst spoken to directly, mostly wrongly (dst-nlpoke): what it refuses, with which words,
# that a refusal changes nothing, and what links do when they are dropped, replaced and lost. No daemon.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"

node_json() { dst-nlpoke get "node=$1"; }

# refusals: each line of standard input is "ERRNO | TEXT | COMMAND WORD..."; EXPORT stands for one that is right.
# All must be refused so, leave node alpha as it was, and every connected socket to its owner.
refusals() { assert_ok dst-nlpoke refusals alpha < <(sed 's/EXPORT/node=alpha export=1048576 wanted=4/'); }

# A node of 1 MiB that no link has ever reached.
make_waiting_node() { assert_ok dmsetup create dev --table "0 2048 dst 1 alpha 0 2048"; }

# Descriptors that can't be a link: each is refused by its kind, and goes on working for its owner; the good
# ones before a bad one come back, too.
test_bad_descriptors() {
    make_waiting_node
    refusals <<'END'
EBADF | no such descriptor | links EXPORT link=0:1:closed
ENOTSOCK | not a socket | links EXPORT link=0:1:file
ENOTSOCK | not a socket | links EXPORT link=0:1:pipe
ENOTCONN | not connected | links EXPORT link=0:1:listening
ENOTCONN | not connected | links EXPORT link=0:1:unconnected
ENOTCONN | not connected | links EXPORT link=0:1:shut
EINVAL | only TCP and Unix stream sockets | links EXPORT link=0:1:udp
EINVAL | only TCP and Unix stream sockets | links EXPORT link=0:1:datagram
EBADF | no such descriptor | links EXPORT link=0:1:pair link=1:2:unix link=2:3:closed
EBUSY | belongs to somebody already | links EXPORT link=0:1:pair link=1:2:same
EBUSY | belongs to somebody already | links EXPORT link=0:1:unix link=1:2:same
END
    assert_ok node_says alpha '"\(.state) \(.live) \(.generation)"' "waiting 0 0"
}

# A socket that carries kernel TLS is not taken: nobody asked for that layer.
test_ktls_socket() {
    need_module tls
    modprobe tls
    defer "modprobe -r tls"
    make_waiting_node
    refusals <<<"EOPNOTSUPP | upper layer protocol | links EXPORT link=0:1:ktls"
}

# A socket that is a link already is refused a second time, and the link goes on.
test_socket_handed_over_twice() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    make_waiting_node
    run dst-nlpoke links again node=alpha export=1048576 wanted=1 "link=0:1:nbd@$(node_uri alpha)"
    assert_eq "$RC" 1 "status of the second hand-over"
    assert_contains "$OUT" "refused: EBUSY: the socket belongs to somebody already"
    assert_ok node_says alpha '"\(.state) \(.live) \(.generation)"' "live 1 1"
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=64k iflag=direct status=none
}

# Requests that lack something or say nonsense: each its own words, and nothing changes.
test_bad_requests() {
    local name rest="wanted=1 link=0:1:pair"
    local good="size=1048576 flags=365 min=1 pref=4096 max=33554432 zero=0"
    make_waiting_node
    refusals <<END
ENOENT | no table names this node | get node=beta
ENOENT | no table names this node | links node=beta $good $rest
EINVAL | NODE is missing | get
EINVAL | NODE is missing | fail
EINVAL | policy validation | get node=$(printf 'n%.0s' {1..64})
$(for name in size flags min pref max zero; do echo "EINVAL | is missing | links node=alpha $rest ${good/$name=/wanted=}"; done)
EINVAL | WANTED is missing | links node=alpha $good link=0:1:pair
EINVAL | WANTED is missing | set node=alpha
ERANGE | 1 to 32 | links node=alpha $good wanted=0 link=0:1:pair
ERANGE | 1 to 32 | links node=alpha $good wanted=33 link=0:1:pair
ERANGE | 1 to 32 | set node=alpha wanted=0
ERANGE | 1 to 32 | set node=alpha wanted=33
EOPNOTSUPP | more than one link | links node=alpha $good flags=109 wanted=2 link=0:1:pair
EINVAL | HAS_FLAGS | links node=alpha $good flags=364 $rest
EINVAL | power of two | links node=alpha $good min=3 $rest
EINVAL | power of two | links node=alpha $good min=0 $rest
EINVAL | at least 512 | links node=alpha $good max=511 $rest
ERANGE | out of range | links node=alpha $good zero=2 $rest
ERANGE | (attribute 5 of the request) | links node=alpha $good session=31 $rest
ERANGE | (attribute 5 of the request) | links node=alpha $good session=33 $rest
EOPNOTSUPP |  | 9 node=alpha
END
}

# Links whose slot or generation is wrong; the sockets stay their owner's.
test_bad_links() {
    make_waiting_node
    refusals <<'END'
EINVAL | nothing to set | links EXPORT
EINVAL | needs SLOT, FD and GENERATION | links EXPORT link=:1:pair
EINVAL | needs SLOT, FD and GENERATION | links EXPORT link=0::pair
EINVAL | needs SLOT, FD and GENERATION | links EXPORT link=0:1:
ERANGE | not below WANTED | links EXPORT link=4:1:pair
ERANGE | out of range | links EXPORT link=32:1:pair
ERANGE | out of range | links EXPORT link=0:0:pair
EINVAL | named twice | links EXPORT link=1:1:pair link=1:2:pair
ESTALE | not above every earlier one | links EXPORT link=0:5:pair link=1:5:pair
ESTALE | not above every earlier one | links EXPORT link=0:5:pair link=1:4:pair
EINVAL | SLOT is missing | drop node=alpha link=:1:
ERANGE | out of range | drop node=alpha link=32::
END
}

# misfit TEXT: what a refused export is told; Linux 6.1 can only send constant texts, NODE_GET has the reason there.
misfit() { [[ $(uname -r) == 6.1.* ]] && echo "the export doesn't fit; NODE_GET has the reason" || echo "$1"; }

# What holds once a node has been live: generations only rise, WANTED follows the server, the export must fit.
test_refusals_of_a_live_node() {
    local uri
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    uri=$(node_uri alpha)
    make_waiting_node
    # too small: refused, and the node says why it isn't live
    run dst-nlpoke links node=alpha export=1048064 wanted=1 link=0:1:pair
    assert_eq "$RC" 1 "status of an export that is too small"
    assert_contains "$OUT" "refused: EMEDIUMTYPE: "
    assert_contains "$OUT" "$(misfit "the export has 1048064 bytes, its extents need 1048576")"
    assert_ok node_says alpha '"\(.state) \(.reason)"' "mismatch the export has 1048064 bytes, its extents need 1048576"
    assert_contains "$(dmsetup status --noflush dev)" "alpha mismatch 0/1"
    # a server with one connection only
    assert_ok dst-nlpoke links node=alpha size=1048576 flags=109 min=1 pref=4096 max=33554432 zero=0 wanted=1 "link=0:7:nbd@$uri"
    assert_ok node_says alpha '"\(.state) \(.reason) \(.generation)"' "live null 7"
    # the live link stays, whatever is refused
    refusals <<END
EOPNOTSUPP | more than one link | set node=alpha wanted=2
ESTALE | not above every earlier one | links EXPORT link=0:7:pair
ESTALE | not above every earlier one | links EXPORT link=0:6:pair
EMEDIUMTYPE | $(misfit "its extents need 1048576") | links EXPORT size=512 link=0:8:pair
EMEDIUMTYPE | $(misfit "minimum block is 4096") | links EXPORT min=4096 link=0:8:pair
EMEDIUMTYPE | $(misfit "read-only") | links EXPORT flags=111 wanted=1 link=0:8:pair
END
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=64k iflag=direct status=none
}

# Nothing without CAP_SYS_ADMIN in the first user namespace, reading and listening included.
test_unprivileged() {
    local who=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    make_waiting_node
    poke_as_stranger "${who[@]}"
    poke_as_stranger unshare --user --map-root-user
    poke_as_stranger setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin
    assert_fails "CAP_SYS_ADMIN" "${who[@]}" timeout 10 dst-nlpoke listen
    assert_fails "CAP_SYS_ADMIN" unshare --user --map-root-user timeout 10 dst-nlpoke listen
}

poke_as_stranger() {
    local before words
    before=$(node_json alpha)
    for words in "get node=alpha" dump "set node=alpha wanted=2" "fail node=alpha" "drop node=alpha force" \
        "links node=alpha export=1048576 wanted=1 link=0:1:pair"; do
        # shellcheck disable=SC2086 # words
        run "$@" dst-nlpoke $words
        assert_eq "$RC" 1 "status of '$words' by '$*'"
        assert_contains "$OUT" "refused: EPERM: CAP_SYS_ADMIN in the initial user namespace is needed" "'$words' by '$*'"
    done
    assert_eq "$(node_json alpha)" "$before" "the node after '$*'"
}

# A live node of 16 MiB with two links, made without dstd's help. It goes before cleanup's tools can read it:
# without links they would wait for ever.
make_live_node() {
    defer "dstd fail-pending alpha; dmsetup remove --retry dev"
    make_file "$(make_image alpha 16M)" 16M
    start_nbdkit alpha
    assert_ok dmsetup create dev --table "0 32768 dst 1 alpha 0 32768"
    set_links 1 2
    # what udev's scanners read is not what the tests count
    let_udev_scan dev
}

# set_links GENERATION GENERATION: fresh links in slots 0 and 1.
set_links() {
    assert_ok dst-nlpoke links node=alpha export=16777216 wanted=2 "link=0:$1:nbd@$(node_uri alpha)" "link=1:$2:nbd@$(node_uri alpha)"
}

links_are() { [[ $(node_json alpha | jq -r '[.links[] | "\(.slot):\(.generation):\(.state)"] | sort | join(" ")') == "$1" ]]; }

# A live link whose slot gets another one drains: I/O under way sees nothing of it.
test_replace_links_under_io() {
    local generation
    make_live_node
    start_verify "$(direct_job 16m)"
    wait_until 20 "I/O on the node" node_says alpha '.links[0].received > 1000000' true
    for generation in 3 5 7 9 11; do
        set_links $generation $((generation + 1))
        verify_goes_on
    done
    stop_verify
    wait_until 10 "the old links' end" links_are "0:$generation:live 1:$((generation + 1)):live"
    assert_ok node_says alpha '"\(.state) \(.errors) \(.reconnects)"' "live 0 0"
    assert_not_contains "$(klog)" "lost"
    assert_ok blockdev --flushbufs /dev/mapper/dev
    cmp "$(node_image alpha)" /dev/mapper/dev || fail "the device isn't what the image holds"
}

# start_read: reads 4 KiB while the server is paused; sets READ to its process.
start_read() {
    timeout 60 dd if=/dev/mapper/dev of="$T/read" bs=4k count=1 iflag=direct status=none &
    READ=$!
    wait_until 10 "the read in flight" node_says alpha .in_flight 1
}

# A dropped link takes no more requests, but those it has are still answered.
test_drop_drains() {
    make_live_node
    pause_node alpha
    start_read
    assert_ok dst-nlpoke drop node=alpha
    assert_ok node_says alpha '"\(.state) \(.live) \(.in_flight)"' "lost 0 1"
    wait_until 10 "the idle link's end" node_says alpha '.links | length' 1
    assert_ok node_says alpha '.links[0].state' draining
    resume_node alpha
    wait $READ || fail "the read on the draining link failed"
    assert_ok cmp -n 4096 "$T/read" "$(node_image alpha)"
    wait_until 10 "the drained link's end" node_says alpha '.links | length' 0
    assert_ok node_says alpha .errors 0
}

# One slot is dropped: the node is degraded and goes on with the other; a slot that has no link is no error.
test_drop_one_slot() {
    make_live_node
    assert_ok dst-nlpoke drop node=alpha link=1::
    wait_until 10 "the link's end" links_are 0:1:live
    assert_ok node_says alpha '"\(.state) \(.reason)"' "degraded drained"
    assert_ok dst-nlpoke drop node=alpha link=1:: link=9::
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
    assert_ok dst-nlpoke set node=alpha wanted=1
    assert_ok node_says alpha '"\(.state) \(.live)/\(.wanted)"' "live 1/1"
}

# Cut with FORCE, a link's requests leave it at once, though the server never answers, and go on with the next one.
test_drop_force() {
    make_live_node
    pause_node alpha
    start_read
    assert_ok dst-nlpoke drop node=alpha force
    wait_until 10 "the links' end" links_are ""
    assert_ok node_says alpha '"\(.state) \(.in_flight) \(.queued) \(.errors)"' "lost 0 1 0"
    resume_node alpha
    set_links 3 4
    wait $READ || fail "the read that was cut off failed"
    assert_ok cmp -n 4096 "$T/read" "$(node_image alpha)"
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
    assert_ok node_says alpha '"\(.state) \(.reconnects)"' "live 2"
}

read_ended() { ! kill -0 "$READ"; }

# fail-pending ends what hangs on a server that is stopped, and what waits without any link, at once.
test_fail_pending_on_a_paused_server() {
    make_live_node
    pause_node alpha
    start_read
    assert_ok timeout 5 dst-nlpoke fail node=alpha
    wait_until 5 "the read's end" read_ended
    if wait $READ; then fail "the read succeeded without a server"; fi
    wait_until 10 "the busy link's end" node_says alpha '.links | length' 1
    assert_ok node_says alpha '"\(.state) \(.in_flight) \(.errors)"' "degraded 0 1"
    # the idle link was left alone
    resume_node alpha
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
    assert_ok dst-nlpoke drop node=alpha
    wait_until 10 "the last link's end" node_says alpha '.links | length' 0
    timeout 60 dd if=/dev/mapper/dev of=/dev/null bs=4k count=1 iflag=direct status=none &
    READ=$!
    wait_until 10 "the read in the queue" node_says alpha .queued 1
    assert_ok timeout 5 dstd fail-pending alpha
    wait_until 5 "the queued read's end" read_ended
    if wait $READ; then fail "the read succeeded without a link"; fi
    assert_ok node_says alpha '"\(.queued) \(.errors)"' "0 2"
}

# A listener hears of each link's life and of each state the node goes through.
test_events() {
    dst-nlpoke listen >"$T/events" 2>&1 &
    wait_until 10 "the listener" grep -q listening "$T/events"
    make_live_node
    wait_until 10 "news of live links" grep -q "^link alpha 1 2 Live" "$T/events"
    assert_ok dst-nlpoke drop node=alpha link=0::
    wait_until 10 "news of the drained link" grep -q "^link alpha 0 1 Gone -: drained" "$T/events"
    kill_node alpha
    wait_until 10 "news of the lost link's end" grep -q "^link alpha 1 2 Gone" "$T/events"
    start_nbdkit alpha
    set_links 3 4
    wait_until 10 "news of the new links" grep -q "^link alpha 1 4 Live" "$T/events"
    wait_until 10 "news of the node's return" events_tell_states
    assert_eq "$(grep -c '^link alpha 1 2 Lost [^-]' "$T/events")" 1 "news of the lost link with its errno: $(cat "$T/events")"
    assert_contains "$(cat "$T/events")" "node alpha Degraded: links dropped on request"
}

events_tell_states() {
    [[ $(awk '$1 == "node" { sub(/:/, "", $3); print $3 }' "$T/events" | xargs) == "Live Degraded Lost Live" ]]
}

# latency JQ: of alpha's.
latency() { node_json alpha | jq -c ".latency | $1"; }

# fits PATH: whether the sum of all times is one that the buckets allow: from half of each one's bound up to the bound.
fits() {
    latency "$1 | ([.buckets | to_entries[] | select(.key > 0) | .value * pow(2; .key - 1) * 1000] | add) as \$least |
        .count == (.buckets | add) and .sum_ns >= \$least and .sum_ns <= \$least * 2 + .buckets[0] * 1000"
}

# assert_counted READS WRITES: no more and no fewer, each in a bucket that its time allows: no read was answered before 100 ms.
assert_counted() {
    assert_eq "$(latency '[.read.count, .write.count]')" "[$1,$2]" "reads and writes counted"
    assert_eq "$(latency '.read.buckets[:17] | add')" 0 "reads that took up to 65.536 ms"
    assert_eq "$(fits .read) $(fits .write)" "true true" "whether sum and counts go together: $(latency .)"
}

# A server that takes 100 ms for each read: each request is counted once, in a bucket that this allows, alone and in
# batches; writes are counted apart, flushes in neither; what is counted outlives the links.
# @timeout 400
# @only faults
test_latency() {
    local reads writes
    make_file "$(make_image alpha 4M)" 4M
    start_nbdkit alpha --filter=delay file "$(node_image alpha)" rdelay=100ms
    defer "dstd fail-pending alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "0 8192 dst 1 alpha 0 8192"
    assert_eq "$(latency '[.read.count, .write.count, .read.sum_ns, (.read.buckets | length)]')" "[0,0,0,26]" "before any link"
    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=1 "link=0:1:nbd@$(node_uri alpha)"
    let_udev_scan dev
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
    reads=$(latency .read.count) writes=$(latency .write.count)

    assert_ok dd if=/dev/mapper/dev of="$T/read" bs=4k count=5 iflag=direct status=none
    assert_ok cmp -n 20480 "$T/read" "$(node_image alpha)"
    assert_counted $((reads += 5)) "$writes"
    assert_ok fio --name=batches --filename=/dev/mapper/dev --direct=1 --ioengine=libaio --iodepth=16 --rw=randread --bs=4k \
        --number_ios=64 --output="$T/fio.out"
    assert_counted $((reads += 64)) "$writes"
    assert_ok dd if=/dev/zero of=/dev/mapper/dev bs=4k count=7 oflag=direct conv=notrunc,nocreat status=none
    assert_counted "$reads" $((writes += 7))
    assert_ok node_says alpha '.writes > 0' true
    assert_ok sync /dev/mapper/dev
    assert_ok node_says alpha .writes 0
    assert_counted "$reads" "$writes"

    assert_ok dst-nlpoke links node=alpha export=4194304 wanted=1 "link=0:2:nbd@$(node_uri alpha)"
    wait_until 10 "the old link's end" links_are 0:2:live
    assert_counted "$reads" "$writes"
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=2 iflag=direct status=none
    assert_counted $((reads += 2)) "$writes"
    run dstd status
    assert_match "$OUT" "alpha +$reads +(up to (131|262|524)\.[0-9]ms|up to [0-9.]+s|over 16\.8s) " "the status"
    assert_match "$OUT" " $writes +(up to|over) "
}

# waited JQ: of alpha's queue time.
waited() { node_json alpha | jq ".queue_time | $1"; }

# micros: a clock's, in microseconds.
micros() { echo "${EPOCHREALTIME//[.,]/}"; }

# Requests that wait for a link are counted, and the time that they wait, while they do: between two looks, four of them wait four
# times as long as it took. With a link, both stand still.
test_queue_time() {
    local waits sum before after from to n
    make_live_node
    defer "udevadm control --start-exec-queue"
    assert_ok udevadm control --stop-exec-queue
    wait_until 10 "an idle node" node_says alpha '[.in_flight, .queued] | add' 0
    waits=$(waited .count) sum=$(waited .sum_ns)
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=3 iflag=direct status=none
    assert_eq "$(waited '[.count, .sum_ns]' | jq -c .)" "[$waits,$sum]" "what waited while links were live"

    assert_ok dst-nlpoke drop node=alpha
    for n in 0 1 2 3; do
        dd if=/dev/mapper/dev of="$T/$n" bs=4k count=1 skip=$((n * 8)) iflag=direct status=none &
    done
    wait_until 10 "four reads that wait" node_says alpha .queued 4
    assert_eq "$(waited .count)" $((waits + 4)) "waits"
    before=$(micros) sum=$(waited .sum_ns) from=$(micros)
    sleep 0.2 # what is measured
    to=$(micros) after=$(waited .sum_ns)
    assert_ok test $((after - sum)) -ge $((4 * (to - from) * 1000))
    assert_ok test $((after - sum)) -le $((4 * ($(micros) - before) * 1000))
    assert_eq "$(waited .count)" $((waits + 4)) "waits that go on"

    set_links 3 4
    for n in 0 1 2 3; do
        wait_until 20 "read $n" cmp -s -n 4096 -i "0:$((n * 32768))" "$T/$n" "$(node_image alpha)"
    done
    wait_until 10 "an idle node" node_says alpha '[.in_flight, .queued] | add' 0
    sum=$(waited .sum_ns)
    assert_ok test "$sum" -ge "$after"
    assert_ok dd if=/dev/mapper/dev of=/dev/null bs=4k count=3 iflag=direct status=none
    assert_eq "$(waited '[.count, .sum_ns]' | jq -c .)" "[$((waits + 4)),$sum]" "what waited after that"
}
