#!/usr/bin/env bash
# A private apt for each suite: own sources, lists and dpkg status in the cache, so that the host's apt never hears
# of foreign suites. Sourced after lib.sh by kernel.sh and kernel-debug.sh, which set NAME, the kernel that messages
# are about. Downloads lists only; packages are for the callers to get, with APT_CONFIG as ask_archive left it.

LISTS_MAX_AGE_MIN=${DST_LISTS_MAX_AGE_MIN:-720}

sources_of() {
    case $1 in
    bookworm)
        echo "deb [signed-by=$KEYRING] $MIRROR bookworm main"
        echo "deb [signed-by=$KEYRING] $SECURITY_MIRROR bookworm-security main"
        ;;
    sid) echo "deb [signed-by=$KEYRING] $MIRROR sid main" ;;
    esac
}

# sid's Valid-Until is not checked (a mirror may lag a week); the signatures are.
private_apt() {
    local dir=$CACHE/apt/$1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/empty.d"
    : >>"$dir/status"
    sources_of "$1" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/empty.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$dir/empty.d";
Dir::State::status "$dir/status";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures {"amd64";};
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
CONF
    export APT_CONFIG=$dir/apt.conf
}

refresh_lists() {
    local dir=$CACHE/apt/$1
    [[ -n $(find "$dir/stamp" -mmin "-$LISTS_MAX_AGE_MIN" 2>/dev/null) ]] && return 0
    say "kernel $NAME: asking Debian's archive ($1) for its newest version"
    if apt-get -qq -o APT::Update::Error-Mode=any update >"$dir/update.log" 2>&1; then
        touch "$dir/stamp"
    else
        say "kernel $NAME: apt-get update failed ($(tail -n 1 "$dir/update.log")); using what the cache has"
    fi
}

# ask_archive SUITE: apt-get and apt-cache then speak of that suite. Until the caller ends or closes file 7 it is alone
# with its lists.
ask_archive() {
    mkdir -p "$CACHE/apt"
    exec 7>"$CACHE/apt/$1.lock"
    flock 7
    private_apt "$1"
    refresh_lists "$1"
}
