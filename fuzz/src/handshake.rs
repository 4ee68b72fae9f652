//! Any bytes from the first on: greeting, options, and requests where they lead that far.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbdpeer::PeerError;

fuzz_target!(|data: &[u8]| {
    // The first byte says how the rest is cut into segments.
    let Some((segment, bytes)) = data.split_first() else {
        return;
    };
    let mut peer = dst_fuzz::connect();
    let size = match segment {
        0..=127 => bytes.len().max(1),
        small => bytes.len() / usize::from(small - 126) + 1,
    };
    let sent = bytes.chunks(size).all(|part| peer.send(part).is_ok());
    if sent && peer.half_close().is_ok() {
        let end = peer.receive_to_end();
        assert!(
            !matches!(end, Err(PeerError::Silent)),
            "the server never ended"
        );
    }
    drop(peer);
    dst_fuzz::settle();
    assert!(dst_fuzz::kept_is_kept(), "a read-only export was changed");
});
