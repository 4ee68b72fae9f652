//! What the storage refuses arrives at the client by its right name, and a failed flush is never forgotten.

use nbdpeer::{Mode, Request, Session, proto::*};
use nix::libc;

use dstd::export::backend::FaultKind;

use crate::support::{Server, Setup, pattern};

const SIZE: u64 = 1 << 20;

fn server() -> Server {
    Server::start(Setup::new().image("disk", SIZE).faulty())
}

#[test]
fn the_storages_errors_are_told_by_the_protocols_names() {
    let server = server();
    let faults = server.faults("disk");
    let table = [
        (libc::EIO, EIO),
        (libc::ENOSPC, ENOSPC),
        (libc::EDQUOT, ENOSPC),
        (libc::EFBIG, ENOSPC),
        (libc::EROFS, EPERM),
        (libc::ENOMEM, ENOMEM),
        (libc::ENODEV, EIO),
    ];
    for mode in Mode::ALL {
        let mut peer = server.mapping_link("disk", mode);
        for (errno, told) in table {
            for (kind, command) in [
                (FaultKind::Read, READ),
                (FaultKind::Write, WRITE),
                (FaultKind::Zero, WRITE_ZEROES),
            ] {
                faults.fail(kind, 4096..8192, errno, 1);
                let request = match command {
                    WRITE => Request::write(4096, vec![9; 4096]),
                    _ => Request::new(command, 4096, 4096),
                };
                let answer = peer.call(request).unwrap();
                // What the system calls EINVAL or worse is this server's trouble, never the client's mistake.
                assert_eq!(answer.error, told, "{mode:?} {kind:?} {errno}");
                let after = peer.read(4096, 4096).unwrap();
                assert!(
                    after == pattern(4096, 4096),
                    "{mode:?} {kind:?}: data changed"
                );
            }
        }
    }
}

#[test]
fn one_bad_block_leaves_its_neighbours_readable() {
    let server = server();
    server
        .faults("disk")
        .fail(FaultKind::Read, 8192..8193, libc::EIO, u32::MAX);
    for mode in Mode::ALL {
        let mut peer = server.link("disk", mode);
        assert_eq!(peer.call(Request::new(READ, 0, 65536)).unwrap().error, EIO);
        assert!(peer.read(0, 8192).unwrap() == pattern(0, 8192));
        assert!(peer.read(8193, 4096).unwrap() == pattern(8193, 4096));
    }
}

fn incarnation(server: &Server) -> ([u8; 16], [u8; 16]) {
    let ask = Session {
        identify_only: true,
        client: [1; 16],
        export: "disk".to_owned(),
        ..Session::default()
    };
    let answer = server.hello().session(&ask).unwrap();
    (answer.identity, answer.incarnation)
}

#[test]
fn a_failed_flush_is_told_to_every_link_until_the_export_is_opened_anew() {
    let server = server();
    let mut peer = server.link("disk", Mode::Simple);
    let mut other = server.link("disk", Mode::Extended);
    let (identity, before) = incarnation(&server);
    assert_ne!(identity, [0; 16]);
    assert_ne!(before, [0; 16]);
    assert_eq!(
        incarnation(&server),
        (identity, before),
        "the same while nothing happened"
    );
    peer.write(0, &[7; 4096]).unwrap();
    server
        .faults("disk")
        .fail(FaultKind::Flush, 0..SIZE, libc::EIO, 1);
    assert_eq!(peer.call(Request::new(FLUSH, 0, 0)).unwrap().error, EIO);
    // The kernel would say yes the second time: the pages are marked clean and lost.
    for _ in 0..3 {
        for link in [&mut peer, &mut other] {
            assert_eq!(link.call(Request::new(FLUSH, 0, 0)).unwrap().error, EIO);
            let fua = Request::write(0, vec![8; 512]).flags(FUA);
            assert_eq!(link.call(fua).unwrap().error, EIO);
            let fua = Request::new(WRITE_ZEROES, 4096, 512).flags(FUA);
            assert_eq!(link.call(fua).unwrap().error, EIO);
            link.write(512, &[6; 512]).unwrap();
            assert_eq!(link.read(512, 512).unwrap(), [6; 512]);
        }
    }
    let mut newcomer = server.link("disk", Mode::Structured);
    assert_eq!(newcomer.call(Request::new(FLUSH, 0, 0)).unwrap().error, EIO);
    drop((peer, other, newcomer));
    let server = server.restart();
    let (same, after) = incarnation(&server);
    assert_eq!(same, identity);
    assert_ne!(
        after, before,
        "unflushed data was lost: that is another incarnation"
    );
    server.link("disk", Mode::Simple).flush().unwrap();
    let server = server.restart();
    assert_eq!(
        incarnation(&server),
        (identity, after),
        "nothing was lost since"
    );
}

#[test]
fn a_fua_write_that_cant_be_flushed_is_a_failed_flush() {
    let server = server();
    let mut peer = server.link("disk", Mode::Structured);
    server
        .faults("disk")
        .fail(FaultKind::Flush, 0..SIZE, libc::ENOSPC, 1);
    let fua = Request::write(0, vec![8; 512]).flags(FUA);
    assert_ne!(peer.call(fua).unwrap().error, 0);
    assert_ne!(peer.call(Request::new(FLUSH, 0, 0)).unwrap().error, 0);
}

#[test]
fn a_file_that_became_shorter_is_an_error_and_no_crash() {
    let server = Server::start(Setup::new().image("disk", SIZE));
    let mut peer = server.link("disk", Mode::Simple);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(server.file("disk"))
        .unwrap();
    file.set_len(4096).unwrap();
    assert!(peer.read(0, 4096).unwrap() == pattern(0, 4096));
    assert_eq!(
        peer.call(Request::new(READ, 65536, 4096)).unwrap().error,
        EIO
    );
    assert!(peer.read(0, 4096).unwrap() == pattern(0, 4096));
}
