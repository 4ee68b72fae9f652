//! The server's side of the handshake, honest: fixed newstyle, GO and EXPORT_NAME, any export's name, simple replies.
//! Called by serve for each connection. Tells no lies: a client must get so far.

use std::io;

use nbdpeer::proto;

use crate::input::Input;

const FLAGS: u16 = proto::HAS_FLAGS
    | proto::SEND_FLUSH
    | proto::SEND_FUA
    | proto::SEND_TRIM
    | proto::SEND_WRITE_ZEROES
    | proto::CAN_MULTI_CONN;
const OPTION_MAX: usize = 64 * 1024;
/// Minimum, preferred, largest payload.
const BLOCKS: [u32; 3] = [1, 4096, 32 << 20];

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = proto::REPLY_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn facts(size: u64) -> Vec<u8> {
    [&size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat()
}

/// True: the transmission phase begins.
pub fn shake_hands(input: &mut Input, size: u64) -> io::Result<bool> {
    let mut greeting = [proto::NBDMAGIC.to_be_bytes(), proto::IHAVEOPT.to_be_bytes()].concat();
    greeting.extend(3u16.to_be_bytes());
    input.send(&greeting)?;
    let no_zeroes = number(&input.take(4)?) as u32 & proto::NO_ZEROES != 0;
    loop {
        let head = input.take(16)?;
        let (option, length) = (number(&head[8..12]) as u32, number(&head[12..]) as usize);
        if number(&head[..8]) != proto::IHAVEOPT || length > OPTION_MAX {
            return Ok(false);
        }
        input.take(length)?;
        match option {
            proto::OPT_EXPORT_NAME => {
                let zeroes = if no_zeroes { 0 } else { 124 };
                input.send(&[facts(size), vec![0; zeroes]].concat())?;
                return Ok(true);
            }
            proto::OPT_GO | proto::OPT_INFO => {
                input.send(&informed(option, size))?;
                if option == proto::OPT_GO {
                    return Ok(true);
                }
            }
            proto::OPT_LIST => {
                let name = option_reply(option, proto::REP_SERVER, &0u32.to_be_bytes());
                input.send(&[name, option_reply(option, proto::REP_ACK, b"")].concat())?;
            }
            proto::OPT_ABORT => {
                input.send(&option_reply(option, proto::REP_ACK, b""))?;
                return Ok(false);
            }
            _ => input.send(&option_reply(option, proto::ERR_UNSUP, b"not here"))?,
        }
    }
}

fn informed(option: u32, size: u64) -> Vec<u8> {
    let export = [&proto::INFO_EXPORT.to_be_bytes()[..], &facts(size)].concat();
    let mut blocks = proto::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    BLOCKS
        .iter()
        .for_each(|size| blocks.extend(size.to_be_bytes()));
    [
        option_reply(option, proto::REP_INFO, &export),
        option_reply(option, proto::REP_INFO, &blocks),
        option_reply(option, proto::REP_ACK, b""),
    ]
    .concat()
}
