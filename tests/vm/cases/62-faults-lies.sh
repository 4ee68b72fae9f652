#!/usr/bin/env bash
# A server that lies a hundred thousand times beside one that doesn't: what lies ends by links or errors, contents stay
# right, and the honest node never notices. Spoken to directly (dst-nlpoke), no daemon; few are told in 61-stale.sh.

# shellcheck source=tests/vm/faults.sh
source "$(dirname "${BASH_SOURCE[0]}")/../faults.sh"

SIZE=16777216

# start_liar ARG...: node alpha; it lies while $T/lie exists.
start_liar() {
    make_node_net alpha
    write_uri alpha ""
    LIAR_SEED=${LIAR_SEED:-$RANDOM}
    echo "figure: seed $LIAR_SEED"
    detach alpha nsenter --net=/run/netns/n-alpha -- dst-liar --listen "[::]:$NODE_PORT" --size $SIZE \
        --seed "$LIAR_SEED" --while-file "$T/lie" "$@"
    wait_until 30 "the liar" listens alpha
}

# 100,000 wrong exchanges of all kinds, thousands of which end their link.
# @timeout 2400
# @only faults
test_hundred_thousand() {
    local keeper
    start_liar --exchanges "${LIAR_EXCHANGES:-100000}" --lies 75 --fatal 25
    make_image beta 4M >/dev/null
    start_export beta
    defer "give_up alpha; dmsetup remove --retry dev"
    assert_ok dmsetup create dev --table "0 $((SIZE / 512 + 8192)) dst 2 alpha 0 $((SIZE / 512)) beta 0 8192"
    # what a lie ends does nothing after it: no need to wait for a fence
    assert_ok dst-nlpoke set node=alpha quiesce=0
    dst-nlpoke keep alpha "$(node_uri alpha)" $SIZE 4 "$T/kept" >"$T/keeper" 2>&1 &
    keeper=$!
    assert_ok dst-nlpoke links node=beta export=4194304 wanted=2 \
        "link=0:1:nbd@$(node_uri beta)" "link=1:2:nbd@$(node_uri beta)"
    assert_ok udevadm settle --timeout=30
    start_verify "$(direct_job 2M)
offset=$SIZE
iodepth=4"
    defer "pkill -KILL -x dst-checker"
    dst-checker --device /dev/mapper/dev --within $((SIZE / 512)) --hot 2048 --threads 16 --after-error 0 \
        --stop-file "$T/stop" >"$T/report" 2>"$T/checker" &
    CHECKER=$!
    wait_until 90 "the checker to be running" grep -q running "$T/checker"
    : >"$T/lie"
    until grep -q '"done":true' "$(node_log alpha)"; do
        load_goes_on
        kill -0 $keeper || fail "the keeper of links: $(<"$T/keeper")"
        sleep 1
    done
    touch "$T/kept"
    wait $keeper || fail "the keeper of links: $(<"$T/keeper")"
    touch "$T/stop"
    wait "$CHECKER" || fail "the checker: $(cat "$T/report" "$T/checker")"
    stop_verify
    assert_ok node_says beta '"\(.state) \(.live) \(.errors) \(.reconnects) \(.generation)"' "live 2 0 0 2"
    echo "figure: $(grep '"done":true' "$(node_log alpha)")"
    TRIES=$(jq -s 'map(select(.done)) | .[0].mutated' "$(node_log alpha)")
    echo "figure: $(<"$T/keeper"), $(jq -r '"\(.failed) operations failed"' "$T/report")"
    figure
}
