#!/usr/bin/env bash
# No read goes back in time: dst-checker writes and reads one node while its links are cut with writes held back
# (dst-proxy), and while its server lies (dst-liar). Spoken to directly (dst-nlpoke), no daemon.

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"
# shellcheck source=tests/vm/devices.sh
source "$(dirname "${BASH_SOURCE[0]}")/../devices.sh"
# shellcheck source=tests/vm/proxy.sh
source "$(dirname "${BASH_SOURCE[0]}")/../proxy.sh"

SIZE=16777216

# The node alpha with two links to PORT, and device dev.
make_device() {
    PORT=$1 GENERATION=0
    defer "give_up alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "0 $((SIZE / 512)) dst 1 alpha 0 $((SIZE / 512))"
    connect 0 1
    let_udev_scan dev
}

# connect SLOT...: new links there.
connect() {
    local slot links=()
    for slot; do
        GENERATION=$((GENERATION + 1))
        links+=("link=$slot:$GENERATION:nbd@nbd://$(node_addr alpha):$PORT/")
    done
    assert_ok dst-nlpoke links node=alpha "export=$SIZE" wanted=2 "${links[@]}"
}

# Slot and generation of each live link, a line each.
live_links() { dst-nlpoke get node=alpha | jq -r '.links[] | select(.state == "live") | "\(.slot) \(.generation)"'; }
lost_slot() {
    local live
    live=$(live_links)
    [[ $live =~ (^|$'\n')0\  ]] || echo 0
    [[ $live =~ (^|$'\n')1\  ]] || echo 1
}
has_lost_one() { [[ $(live_links | wc -l) == 1 ]]; }
field_above() { (($(node_field alpha "$1") > $2)); }

# start_checker [OPTION...]: returns when it has written every hot sector once. Sets CHECKER.
start_checker() {
    rm -f "$T/stop"
    defer "pkill -KILL -x dst-checker"
    dst-checker --device /dev/mapper/dev --stop-file "$T/stop" "$@" >"$T/report" 2>"$T/checker" &
    CHECKER=$!
    wait_until 60 "the checker to be running" grep -q running "$T/checker"
}
checker_says() { jq -r "$1" "$T/report"; }
# stop_checker: it must have found nothing.
stop_checker() {
    touch "$T/stop"
    wait "$CHECKER" || fail "the checker: $(cat "$T/report" "$T/checker")"
    echo "figure: $(checker_says '"\(.ops) operations, \(.bytes_verified) bytes verified, longest stall \(.longest_stall_ms) ms, \(.failed) failed"')"
}
checker_goes_on() { kill -0 "$CHECKER" 2>/dev/null || fail "the checker: $(cat "$T/report" "$T/checker")"; }

# hold_a_write: cuts a link of alpha under a write, which the server gets only when it is released. Sets RULE, and SLOT
# and OLD to the lost link's slot and generation.
hold_a_write() {
    local before
    before=$(live_links)
    RULE=$(order alpha arm request write nth 20 "do" hold and rst client)
    order alpha wait "$RULE" fired 60
    wait_until 20 "the loss of a link" has_lost_one
    SLOT=$(lost_slot)
    OLD=$(awk -v slot="$SLOT" '$1 == slot { print $2 }' <<<"$before")
    wait_until 20 "the ambiguous range" field_above 6 0
}

# A write is held back between client and server, its link is cut, it is replayed over the other; the old copy comes when
# a newer write to its range waits. Only then is its link fenced: nothing goes back in time.
# @timeout 400
test_old_writes_come_before_the_fence() {
    local round
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    start_proxy alpha
    make_device $PROXY_PORT
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    start_checker --hot 128 --threads 8
    for round in 1 2 3 4; do
        echo "round $round"
        hold_a_write
        connect "$SLOT"
        wait_until 60 "a newer write at the guard" field_above 13 0
        order alpha release "$RULE"
        order alpha wait "$RULE" answered 60
        assert_ok dst-nlpoke fenced node=alpha "link=$SLOT:$OLD:"
        wait_until 20 "no more ambiguous ranges" state_calm
        checker_goes_on
    done
    stop_checker
}
state_calm() { [[ $(node_field alpha 6) == 0 && $(node_field alpha 2) == live ]]; }

# A write is held back between client and server, and a noflush suspend takes it off its link, which goes on: pushed back
# it waits until the server has had it, and newer writes to its range wait behind it. The links stay as they were.
# @timeout 400
test_suspends_while_writes_are_held() {
    local round before
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    start_proxy alpha
    make_device $PROXY_PORT
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    before=$(live_links)
    start_checker --hot 128 --threads 8
    for round in 1 2 3 4; do
        echo "round $round"
        RULE=$(order alpha arm request write nth 20 "do" hold)
        order alpha wait "$RULE" fired 60
        assert_ok timeout 60 dmsetup suspend --noflush dev
        assert_ok field_above 6 0
        assert_ok dmsetup resume --noudevsync dev
        wait_until 60 "the write at its guard" field_above 13 0
        order alpha release "$RULE"
        order alpha wait "$RULE" answered 60
        wait_until 20 "no more ambiguous ranges" state_calm
        checker_goes_on
    done
    stop_checker
    assert_eq "$(live_links)" "$before" "the links"
}

# The same, but the range is declared fenced before the old copy comes: the checker sees what that does. Not each time:
# it may be written again before anybody has read it.
# @timeout 400
test_checker_sees_a_write_that_comes_too_late() {
    local round
    make_image alpha $SIZE >/dev/null
    start_nbdkit alpha
    start_proxy alpha
    make_device $PROXY_PORT
    assert_ok dst-nlpoke set node=alpha "quiesce=$NEVER"
    start_checker --hot 64 --threads 8
    for round in 1 2 3 4 5 6 7 8; do
        echo "round $round"
        hold_a_write
        connect "$SLOT"
        assert_ok dst-nlpoke fenced node=alpha "link=$SLOT:$OLD:"
        wait_until 120 "newer writes, dozens to each sector" has_sent 4000000
        order alpha release "$RULE"
        order alpha wait "$RULE" answered 60
        wait_until 120 "each sector to be read, or the checker's end" has_sent 1000000
        kill -0 "$CHECKER" 2>/dev/null || break
    done
    touch "$T/stop"
    if wait "$CHECKER"; then fail "the checker has seen nothing: $(cat "$T/report")"; fi
    cat "$T/report"
    assert_eq "$(checker_says .ok)" false
    assert_match "$(checker_says .violation.what)" "old value|take turns|lost"
}
bytes_sent() { dst-nlpoke get node=alpha | jq '[.links[].sent] | add'; }
# has_sent BYTES: since it was asked first, or the checker has ended.
has_sent() {
    local sent
    sent=$(bytes_sent)
    : "${SENT_FROM:=$sent}"
    if ((sent < SENT_FROM + $1)) && kill -0 "$CHECKER" 2>/dev/null; then return 1; fi
    unset SENT_FROM
}

# A server that lies 20,000 times: proper errors reach the application, all else ends the link, and contents stay
# right.
# @timeout 900
# @only faults
test_lying_server() {
    make_image alpha $SIZE >/dev/null
    make_node_net alpha
    write_uri alpha ""
    PORT=$NODE_PORT
    detach alpha nsenter --net=/run/netns/n-alpha -- dst-liar --listen "[::]:$NODE_PORT" --size $SIZE \
        --seed "${LIAR_SEED:=$RANDOM}" --exchanges "${LIAR_EXCHANGES:=20000}" --lies 60 --fatal 3 --while-file "$T/lie"
    echo "seed $LIAR_SEED"
    wait_until 30 "the liar" listens alpha
    make_device "$NODE_PORT"
    # what a lie ends does nothing after it: no need to wait for a fence
    assert_ok dst-nlpoke set node=alpha quiesce=0
    start_checker --threads 16 --hot 2048 --after-error 0
    : >"$T/lie"
    until grep -q '"done":true' "$(node_log alpha)"; do
        checker_goes_on
        reconnect_lost
    done
    reconnect_lost
    stop_checker
    echo "figure: $(grep '"done":true' "$(node_log alpha)")"
}
reconnect_lost() {
    local lost
    mapfile -t lost < <(lost_slot)
    ((${#lost[@]} == 0)) || connect "${lost[@]}"
}
