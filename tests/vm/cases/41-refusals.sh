#!/usr/bin/env bash
# Bad input and hostile surroundings for dstd: each gets words of its own, leaves nothing half-made behind and
# changes nothing. The kernel's own refusals are in 10-target.sh and 43-netlink.sh.
# shellcheck disable=SC2016 # backquotes in single quotes are dstd's own

# shellcheck source=tests/vm/control.sh
source "$(dirname "${BASH_SOURCE[0]}")/../control.sh"

# bad_yaml PLACE TEXT: what standard input holds is refused at that place with that text.
bad_yaml() {
    cat >"$T/bad.yaml"
    run dstd apply "$T/bad.yaml"
    assert_eq "$RC" 4 "the status ($OUT)"
    assert_contains "$OUT" "$T/bad.yaml:$1: $2" "the text"
}

# with_devices LINE...: two nodes and these lines under `devices:` (it is line 5).
with_devices() {
    printf 'version: 1\nnodes:\n  alpha: {uri: "nbd://10.99.0.1/a"}\n  beta: {uri: "nbd://10.99.0.1/b"}\ndevices:\n'
    printf '  %s\n' "$@"
}
with_node() { printf 'version: 1\nnodes:\n  %s\n' "$1"; }

# Wrong topologies: each wrong thing has its place and its own words.
test_bad_topologies() {
    with_devices 'dev: {table: [{dst: {node: alhpa}}]}' | bad_yaml 6:30 'there is no node `alhpa`: did you mean `alpha`?'
    with_devices 'dev: {tabel: [{dst: {node: alpha}}]}' | bad_yaml 6:9 'devices.dev: unknown key `tabel`'
    with_devices 'dev: {table: [{dst: {node: alpha, length: 1000}}]}' | bad_yaml 6:45 'devices.dev.table[0].dst.length: `1000` has no unit'
    with_devices 'dev: {table: [{dst: {node: alpha, length: 1GB}}]}' | bad_yaml 6:45 'devices.dev.table[0].dst.length: `1GB` uses the unit `GB`'
    with_devices 'dev:' '  table:' '    - dst: {node: alpha, length: 2MiB}' '    - dst: {node: alpha, offset: 1MiB, length: 2MiB}' |
        bad_yaml 9:9 'dev uses sectors 2048 to 4096 of node `alpha` twice'
    with_devices 'dev: {table: [{dst: {node: alpha, length: 2MiB}}]}' 'dev2: {table: [{dst: {node: alpha, length: 2MiB}}]}' |
        bad_yaml 7:18 'dev and dev2 both write sectors 0 to 4096 of node `alpha`'
    with_devices 'dev:' '  table:' '    - "0 8 zero"' '    - "9 8 zero"' | bad_yaml 9:9 'the line starts at 9, the item before it ends at 8'
    with_devices 'dev:' '  table:' '    - "0 8 dst 2 alpha 0 4 beta 0 5"' | bad_yaml 8:9 'in this dst line the extents add up to 9 sectors, the line has 8'
    with_devices 'dev: {block_size: 513, table: [{dst: {node: alpha}}]}' | bad_yaml 6:21 'devices.dev.block_size: `513` is no block size'
    with_devices 'dev: {table: []}' | bad_yaml 6:16 'the table of dev is empty'
    with_node 'alpha: {links: 1}' | bad_yaml 3:10 'nodes.alpha: missing key `uri`'
    with_node 'alpha: {uri: "http://10.0.0.1/a"}' | bad_yaml 3:16 'nodes.alpha.uri: scheme `http` isn'
    with_node 'alpha: {uri: "nbds://10.0.0.1/a"}' | bad_yaml 3:16 "nodes.alpha.uri: nbds:// isn't supported: TLS is not supported yet"
    with_node 'alpha: {uri: "nbd://10.0.0.1/a", links: 33}' | bad_yaml 3:43 'nodes.alpha.links: `33` is no number of links'
    with_node 'alpha: {uri: "nbd://10.0.0.1/a", policy: drop}' | bad_yaml 3:44 'nodes.alpha.policy: `drop` is no policy'
    with_node 'alpha: {uri: "nbd://10.0.0.1/a", timeout: 10ms}' | bad_yaml 3:45 'nodes.alpha.timeout: a timeout of 10ms is too short'
    with_node 'al/pha: {uri: "nbd://10.0.0.1/a"}' | bad_yaml 3:3 'nodes: `al/pha` is no node name'
    { with_node 'alpha: {uri: "nbd://10.0.0.1/a"}' && echo '  alpha: {uri: "nbd://10.0.0.2/a"}'; } |
        bad_yaml 4:3 'nodes: the key `alpha` stands here a second time'
    echo 'version: 2' | bad_yaml 1:10 'version: version `2` is not known'
    printf 'version: 1\nnodes: [\n  x\n' | bad_yaml 4:1 "did not find expected ',' or ']'"
    bad_yaml 1:1 'the file is empty' </dev/null
    head -c 9 /dev/zero | bad_yaml 1:1 'control characters are not allowed'
    with_node 'alpha: {}' | assert_fails "/dev/stdin:3:10: nodes.alpha: missing key" dstd validate /dev/stdin
    printf '\xff\xfe\xfd' >"$T/binary.yaml"
    refused 4 "$T/binary.yaml: can't be read" dstd apply "$T/binary.yaml"
    refused 4 "nothere.yaml: can't be read: No such file" dstd apply "$T/nothere.yaml"
    refused 64 "unexpected argument" dstd apply --no-such-option
    assert_eq "$(dmsetup ls)" "No devices found" "devices"
}

# All errors of a topology are told at once.
test_all_errors_at_once() {
    with_devices 'dev: {table: [{dst: {node: gamma, length: 1MiB}}]}' 'dev2: {table: []}' >"$T/t.yaml"
    refused 4 "t.yaml:6:30: there is no node" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "t.yaml:7:17: the table of dev2 is empty"
}

# topology_of URI: device dev on node alpha, whole; more lines on standard input where there are any.
topology_of() {
    printf 'version: 1\nnodes:\n  alpha: {uri: "%s"}\ndevices:\n  dev: {table: [{dst: {node: alpha%s}}]}\n' "$1" "${2:-}" >"$T/t.yaml"
}

# apply_refused TEXT URI [EXTRA]: neither plan nor apply gets anywhere with that address, and both say why.
apply_refused() {
    topology_of "$2" "${3:-}"
    refused 1 "$1" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "nothing was changed" "the error of apply"
    assert_contains "$OUT" "alpha" "the error of apply"
    run dstd plan "$T/t.yaml"
    assert_contains "$OUT" "$1" "what plan says"
}

# Nobody answers: refused, black hole, wrong name, no socket; in bounded time, nothing made.
test_unreachable_nodes() {
    local began=$SECONDS
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    apply_refused "Connection refused" "nbd://$(node_addr alpha):9/"
    apply_refused "Connection refused" "nbd://$(node_addr alpha):9/" ", length: 1MiB"
    apply_refused "can't resolve host" "nbd://no-such-host.invalid/"
    apply_refused "can't connect to" "nbd+unix:///?socket=$T/no.sock"
    assert_ok dstd probe "$(node_uri alpha)"
    cut_node alpha
    topology_of "$(node_uri alpha)"
    refused 1 "no answer within 10 s: connecting to $(node_addr alpha):10809" timeout 25 dstd apply "$T/t.yaml"
    ((SECONDS - began < 60)) || fail "it took $((SECONDS - began)) s"
    assert_eq "$(dmsetup ls)" "No devices found" "devices"
}

# Who tells apply to end while a node keeps it waiting isn't kept waiting himself, and nothing was made.
test_interrupted_apply() {
    local apply status=0
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    pause_node alpha
    topology_of "$(node_uri alpha)"
    dstd apply "$T/t.yaml" >"$T/said" 2>&1 9>&- &
    apply=$!
    wait_until 20 "apply's connection" is_asked alpha
    kill -TERM "$apply"
    wait "$apply" || status=$?
    resume_node alpha
    assert_eq "$status" 1 "the status"
    assert_contains "$(cat "$T/said")" "interrupted; no step was under way" "what it said"
    assert_eq "$(dmsetup ls)" "No devices found" "devices"
}

is_asked() { [[ -n $(ss -Htn state established "dst $(node_addr "$1")") ]]; }

# Servers that are something else: what they say is shown.
# @only faults
test_servers_that_are_no_nbd_server() {
    echo 'SSH-2.0-OpenSSH_9.2p1' >"$T/banner"
    socat "TCP-LISTEN:7001,bind=127.0.0.1,reuseaddr,fork" "OPEN:$T/banner,rdonly" 9>&- &
    socat "TCP-LISTEN:7002,bind=127.0.0.1,reuseaddr,fork" "SYSTEM:read line; echo HTTP/1.1 400 Bad Request" 9>&- &
    socat "TCP-LISTEN:7003,bind=127.0.0.1,reuseaddr,fork" "SYSTEM:exit 0" 9>&- &
    wait_until 20 "the wrong servers" three_listen
    apply_refused "this isn't an NBD server: it greeted with \"SSH-2.0-" "nbd://127.0.0.1:7001/"
    topology_of "nbd://127.0.0.1:7002/"
    refused 1 "no answer within 10 s: waiting for the server's greeting; is it an NBD server?" timeout 25 dstd apply "$T/t.yaml"
    apply_refused "the server closed the connection while waiting for the server's greeting" "nbd://127.0.0.1:7003/"
}

three_listen() { [[ $(ss -Hltn '( sport = 7001 or sport = 7002 or sport = 7003 )' | wc -l) == 3 ]]; }

# An export that isn't there: the message names those that are.
test_wrong_export_name() {
    make_image alpha 1M >/dev/null
    start_qemu_nbd alpha
    apply_refused "the server has no export \`wrong\`" "nbd://$(node_addr alpha)/wrong"
    assert_contains "$OUT" "exports: \`alpha\`" "the hint"
    topology_of "$(node_uri alpha)"
    assert_ok dstd apply "$T/t.yaml"
}

# Extents beyond the export's end, and a minimum block that is too large: refused with the numbers, before anything is made.
test_exports_that_do_not_fit() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)" ", length: 2MiB"
    refused 3 "alpha" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "nothing was changed" "the refusal"
    assert_contains "$OUT" "2048" "the export's sectors"
    topology_of "$(node_uri alpha)" ", offset: 1MiB"
    refused 3 "alpha" dstd apply "$T/t.yaml"
    stop_node alpha
    start_nbdkit alpha --filter=blocksize-policy file "$(node_image alpha)" blocksize-minimum=4096 blocksize-preferred=4096 blocksize-maximum=32M \
        blocksize-error-policy=error
    topology_of "$(node_uri alpha)"
    refused 3 "block_size" dstd apply "$T/t.yaml"
    assert_contains "$OUT" "4096" "the minimum block"
    assert_eq "$(dmsetup ls)" "No devices found" "devices"
}

# An export that shrank under a device that lives gets no link: the node is a mismatch and says why, the device stays.
test_export_that_shrank() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)" ", length: 1MiB"
    assert_ok dstd apply "$T/t.yaml"
    kill_node alpha
    wait_until 10 "the node's loss" node_says alpha .state lost
    truncate -s 512K "$(node_image alpha)"
    start_nbdkit alpha
    run dstd apply "$T/t.yaml"
    ((RC != 0)) || fail "apply took an export that is too small: $OUT"
    assert_contains "$OUT" "alpha" "the refusal"
    assert_contains "$OUT" "1024" "the sectors that are left, in the refusal"
    assert_eq "$(dmsetup table dev)" "0 2048 dst 1 alpha 0 2048 2 block_size 512" "the table"
    assert_ok node_says alpha '"\(.state) \(.live) \(.reason)"' "mismatch 0 the export has 524288 bytes, its extents need 1048576"
    truncate -s 1M "$(node_image alpha)"
    kill_node alpha
    start_nbdkit alpha
    assert_ok dstd apply "$T/t.yaml"
    assert_ok cmp "$(node_image alpha)" /dev/mapper/dev
}

# Without privilege every command that needs it says so, and those that need none work.
test_unprivileged_dstd() {
    local command who=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)"
    assert_ok dstd apply "$T/t.yaml"
    chmod 755 "$T" "$(dirname "$T")"
    chmod 644 "$T/t.yaml"
    for command in "apply $T/t.yaml" "plan $T/t.yaml" status "status --json" "remove dev" "remove --force dev" "fail-pending alpha" "run $T/t.yaml"; do
        # shellcheck disable=SC2086 # words
        refused 1 "run it as root" "${who[@]}" timeout 20 dstd $command
    done
    assert_ok "${who[@]}" dstd validate "$T/t.yaml"
    assert_ok "${who[@]}" dstd table "$T/t.yaml" --size alpha=1MiB
    assert_eq "$OUT" "0 2048 dst 1 alpha 0 2048 2 block_size 512" "the table without privilege"
    assert_ok "${who[@]}" dstd probe "$(node_uri alpha)"
}

# A device of somebody else under the same name is left alone, whatever is asked.
test_device_of_somebody_else() {
    local args
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)"
    assert_ok dmsetup create dev --table "0 2048 linear $(scratch 0) 0"
    for args in "" "--prune" "--allow-shrink dev --allow-other-data dev"; do
        # shellcheck disable=SC2086 # words
        refused 3 "a device of this name is there, and it isn't dstd's (no UUID)" dstd apply $args "$T/t.yaml"
    done
    refused 3 "isn't dstd's" dstd remove dev
    refused 3 "isn't dstd's" dstd remove --force dev
    assert_ok dmsetup remove dev
    assert_ok dmsetup create dev --uuid "CRYPT-other" --table "0 2048 linear $(scratch 0) 0"
    refused 3 "it isn't dstd's (UUID CRYPT-other)" dstd apply "$T/t.yaml"
    # a device that is in use
    assert_ok dmsetup remove dev
    assert_ok dstd apply "$T/t.yaml"
    exec 8</dev/mapper/dev
    refused 3 "dev is in use" dstd remove dev
    printf 'version: 1\n' >"$T/none.yaml"
    refused 3 "in use" dstd apply --prune "$T/none.yaml"
    refused 1 "there is no device other" dstd remove other
}

# A line that dm refuses leaves no device, and the kernel's words reach the user.
test_table_that_the_kernel_refuses() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)"
    sed -i 's/^  dev: .*/  dev: {table: [{dst: {node: alpha}}, "0 8 no-such-target x"]}/' "$T/t.yaml"
    refused 1 "no-such-target" dstd apply "$T/t.yaml"
    assert_eq "$(dmsetup ls)" "No devices found" "devices"
    assert_eq "$(dst-nlpoke dump)" "" "nodes"
}

# A name that is taken by two is told before anything is made; a wrong one of an option, too.
test_wrong_names_in_options() {
    make_image alpha 1M >/dev/null
    start_nbdkit alpha
    topology_of "$(node_uri alpha)"
    refused 1 'the topology has no device `dve`: did you mean `dev`?' dstd apply --allow-shrink dve "$T/t.yaml"
    refused 1 'the kernel has no node `alpha`' dstd fail-pending alpha
    refused 64 "no node name" dstd fail-pending 'al/pha'
}
