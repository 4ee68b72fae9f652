#!/usr/bin/env bash
# rootfs.sh: makes the guest's root file system (Debian 12 with systemd, udev, lvm2 and the real NBD servers)
# as an ext4 image in the cache and prints its path. Its name is the hash of this script and of scripts/guest/.
# Called by dst-vm, which boots it through a throwaway overlay; nothing ever writes to the image itself.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/lib.sh"

SUITE=bookworm
SIZE=3G # sparse: free room for what tests write to /
PACKAGES=(
    systemd systemd-sysv udev dbus kmod util-linux mount procps psmisc iproute2 nftables
    lvm2 dmsetup libdevmapper1.02.1 thin-provisioning-tools mdadm cryptsetup-bin
    e2fsprogs xfsprogs dosfstools
    nbd-client nbd-server nbdkit qemu-utils libnbd-bin
    open-iscsi
    fio jq tree strace socat python3-minimal python3-libnbd less
)
# Nothing of this is needed in a guest that lives for one test run; each costs boot time under TCG.
MASKED=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    fstrim.timer man-db.timer mdcheck_start.timer mdcheck_continue.timer mdmonitor-oneshot.timer
    systemd-hwdb-update.service systemd-networkd-wait-online.service systemd-timesyncd.service
    systemd-pstore.service systemd-journal-flush.service systemd-binfmt.service
    getty@tty1.service getty-static.service getty.target nbd-server.service nbd-client.service
    open-iscsi.service iscsid.service iscsid.socket
    systemd-tmpfiles-clean.timer logrotate.timer
)

bootstrap() {
    printf 'deb [signed-by=%s] %s %s main\n' "$KEYRING" "$MIRROR" "$SUITE" \
        "$KEYRING" "$SECURITY_MIRROR" "$SUITE-security" |
        mmdebstrap --quiet --mode=root --variant=required \
            --include="$(IFS=, && echo "${PACKAGES[*]}")" \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
            "$SUITE" "$1" - >"$CACHE/rootfs.log" 2>&1 || {
        tail -n 20 "$CACHE/rootfs.log" >&2
        die "mmdebstrap could not make the root file system (log: $CACHE/rootfs.log)"
    }
}

configure() {
    local root=$1 unit
    cp -rT "$here/guest" "$root"
    for unit in "${MASKED[@]}"; do ln -sfn /dev/null "$root/etc/systemd/system/$unit"; done
    ln -sfn /lib/systemd/system/dst-agent.service "$root/etc/systemd/system/multi-user.target.wants/dst-agent.service"
    ln -sfn /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    # the system's own daemons stay off: the tests start servers themselves
    rm -f "$root"/etc/systemd/system/multi-user.target.wants/nbd-*.service "$root"/etc/rc?.d/S??nbd-*
    # a shell for each network interface that comes or goes
    ln -sfn /dev/null "$root/etc/udev/rules.d/70-iscsi-network-interface.rules"
    mkdir -p "$root"/dst/{payload,results} "$root"/{usr/lib/modules,var/lib/dst}
    echo dst-guest >"$root/etc/hostname"
    echo 'dd570000000000000000000000000001' >"$root/etc/machine-id"
    : >"$root/etc/fstab"
    chroot "$root" passwd -d root >/dev/null
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
    # newer than /usr: no hwdb, ldconfig or catalog update at boot
    touch "$root/etc/.updated" "$root/var/.updated"
}

make_image() {
    local out=$1
    say "rootfs: making Debian $SUITE with ${#PACKAGES[@]} packages (a minute or two, once)"
    bootstrap "$out/root"
    configure "$out/root"
    mke2fs -q -t ext4 -L dst-root -m 0 -J size=16 -E root_owner=0:0 \
        -d "$out/root" "$out/root.ext4" "$SIZE"
    rm -rf --one-file-system "$out/root"
}

main() {
    need "for the guest's root file system" mmdebstrap e2fsprogs debian-archive-keyring
    local key
    key=$(cd "$here" && find guest -type f -print0 | sort -z | xargs -0 sha256sum)
    key=$(content_key "$here/rootfs.sh" "$key" "$MIRROR")
    build_once "$CACHE/rootfs/$key" make_image
    echo "$CACHE/rootfs/$key/root.ext4"
}
main "$@"
