#!/usr/bin/env bash
# The node server's units under the real systemd: several instances of dstd-export@ on one machine, with their sockets.
# What the units hold is compared natively (dstd/tests/install.rs). docs/node-server.md, "Several on one machine".

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"

COUNTS=/run/dstd/export

# instance NAME PORT: /etc/dst-export/NAME.yaml serves $T/NAME.img as export NAME there.
instance() {
    make_image "$1" 8M >/dev/null
    mkdir -p /etc/dst-export
    cat >"/etc/dst-export/$1.yaml" <<END
version: 1
listen: ["127.0.0.1:$2"]
exports: {$1: {path: $T/$1.img}}
END
}

stop_instances_at_the_end() {
    defer "rm -rf /etc/dst-export; systemctl reset-failed 'dstd-export@*'"
    defer "systemctl disable dstd-export@.service dstd-export@.socket"
    defer "systemctl stop 'dstd-export@*'"
}

unit_is() { [[ $(systemctl show -P "$2" "dstd-export@$1.service") == "$3" ]]; }
incarnation() { dstd probe "nbd://127.0.0.1:$2/$1" --json | jq -r .incarnation; }

# What the kernel has of two's links: a link that was made anew has another generation.
links_of_two() { dst-nlpoke get node=two | jq -c '[.reconnects, .errors, [.links[].generation]]'; }

# Two instances serve what their files say, on ports of their own, as nodes of one device. One is started again: the
# other doesn't notice.
# @timeout 200
test_two_instances() {
    instance one 10811
    instance two 10812
    stop_instances_at_the_end
    defer "systemctl status 'dstd-export@*'"
    assert_ok systemctl enable --now dstd-export@one dstd-export@two
    assert_eq "$(systemctl show -P StatusText dstd-export@one)" "serving 1 of 1 exports on 127.0.0.1:10811" "what one told"
    assert_eq "$(systemctl show -P StatusText dstd-export@two)" "serving 1 of 1 exports on 127.0.0.1:10812" "what two told"
    topology
    node one "nbd://127.0.0.1:10811/one" "links: 2"
    node two "nbd://127.0.0.1:10812/two" "links: 2"
    device dev
    extent one
    extent two
    dstd run "$T/t.yaml" >"$T/dstd.log" 2>&1 </dev/null 9>&- &
    local daemon=$!
    wait_until 60 "the device" test -b /dev/mapper/dev
    random_fill
    one_is_started_again
    random_fill
    assert_same_bytes <(cat "$T/one.img" "$T/two.img") "$T/data"
    # both servers are stopped by what was deferred, so the device has to go first
    kill $daemon
    wait $daemon || true
    assert_ok dmsetup remove --retry dev
    assert_ok systemctl disable dstd-export@.service
    assert_eq "$(find /etc/systemd/system -path '*.wants/dstd-export@*')" "" "what is enabled after the template was disabled"
}

one_is_started_again() {
    local main two half=$((8 * 1024 * 1024))
    main=$(systemctl show -P MainPID dstd-export@two)
    two=$(links_of_two)
    assert_ok systemctl stop dstd-export@one
    wait_until 20 "the loss of one" node_says one .state lost
    assert_ok dd if="$T/data" of=/dev/mapper/dev bs=64k count=128 skip=128 seek=128 oflag=direct status=none
    assert_ok cmp -n $half -i $half "$T/data" /dev/mapper/dev
    assert_ok systemctl start dstd-export@one
    wait_until 60 "the links to one" node_says one .live 2
    assert_eq "$(links_of_two)" "$two" "reconnects, errors and generations of two"
    assert_eq "$(systemctl show -P MainPID dstd-export@two)" "$main" "the process of two"
}

# A failed flush that one instance counted is known when it was stopped and started, and when another was: systemd empties
# no directory that they share.
test_counts_of_failed_flushes_stay() {
    local before record
    instance one 10811
    instance two 10812
    stop_instances_at_the_end
    assert_ok systemctl start dstd-export@one
    before=$(incarnation one 10811)
    record=$(find $COUNTS -name '*.failed-flushes' -newer /etc/dst-export/one.yaml)
    assert_ok systemctl stop dstd-export@one
    # as if its disk had failed a flush
    sed -i 's/ 0$/ 1/' "$record"
    assert_ok systemctl start dstd-export@two
    assert_ok systemctl stop dstd-export@two
    assert_match "$(cat "$record")" " 1$" "the count"
    assert_ok systemctl start dstd-export@one
    [[ $(incarnation one 10811) != "$before" ]] || fail "the incarnation is the same after a failed flush: $before"
    before=$(incarnation one 10811)
    assert_ok systemctl restart dstd-export@one
    assert_eq "$(incarnation one 10811)" "$before" "the incarnation after nothing happened"
}

# A client of the instance's socket starts it, and finds it again when it was stopped; a name without a file is an error.
test_socket_of_an_instance() {
    local uri="nbd+unix:///one?socket=/run/dstd/export-one.sock"
    instance one 10811
    stop_instances_at_the_end
    assert_ok systemctl start dstd-export@one.socket
    assert_ok unit_is one ActiveState inactive
    assert_ok timeout 60 dstd probe "$uri"
    assert_ok unit_is one ActiveState active
    assert_contains "$(systemctl show -P StatusText dstd-export@one)" "/run/dstd/export-one.sock" "what it told"
    assert_ok systemctl stop dstd-export@one.service
    assert_ok timeout 60 dstd probe "$uri"
    assert_ok unit_is one ActiveState active
    assert_fails "Assertion failed" systemctl start dstd-export@nobody
}
