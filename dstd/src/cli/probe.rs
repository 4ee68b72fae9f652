//! `dstd probe`: what a node offers.
//! Called by cli. Needs no privilege; leaves no connection behind.

use clap::Args;

use super::{Exit, Stop, print, system};
use crate::kernel::{Connector, NbdFlags, Probed};
use crate::nbd::uri::NbdUri;

/// Connect to a node and show what it offers
#[derive(Debug, Args)]
pub struct Probe {
    /// nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_name = "URI")]
    uri: NbdUri,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const FLAGS: [(u16, &str); 7] = [
    (NbdFlags::READ_ONLY, "read_only"),
    (NbdFlags::SEND_FLUSH, "flush"),
    (NbdFlags::SEND_FUA, "fua"),
    (NbdFlags::ROTATIONAL, "rotational"),
    (NbdFlags::SEND_TRIM, "trim"),
    (NbdFlags::SEND_WRITE_ZEROES, "write_zeroes"),
    (NbdFlags::CAN_MULTI_CONN, "multi_conn"),
];

impl Probe {
    pub fn run(self) -> Result<Exit, Stop> {
        let connector = system::connector();
        let found = system::block_on(connector.probe(&self.uri))?.map_err(Stop::failed)?;
        if self.json {
            let json = serde_json::to_string_pretty(&found).map_err(Stop::failed)?;
            print(format!("{json}\n"))?;
        } else {
            print(text(&found))?;
        }
        Ok(Exit::Done)
    }
}

fn text(probed: &Probed) -> String {
    let found = &probed.negotiated;
    let flags: Vec<_> = FLAGS
        .iter()
        .filter(|(bit, _)| found.flags.has(*bit))
        .map(|(_, name)| *name)
        .collect();
    let mut text = format!(
        "size          {} bytes ({}, {} sectors)\n\
         flags         {}\n\
         min block     {}\n\
         pref block    {}\n\
         max payload   {}\n",
        found.size.0,
        found.size,
        found.size.whole_sectors(),
        if flags.is_empty() {
            "none".to_owned()
        } else {
            flags.join(" ")
        },
        found.min_block,
        found.pref_block,
        found.max_payload,
    );
    if let Some(description) = &found.description {
        text += &format!("description   {description}\n");
    }
    if let Some(identity) = found.identity {
        text += &format!("identity      {identity}\n");
    }
    if let Some(incarnation) = found.incarnation {
        text += &format!("incarnation   {incarnation}\n");
    }
    match &probed.writer {
        None => {}
        Some(writer) if writer.text.is_empty() => text += "writer        nobody\n",
        Some(writer) => {
            let who = if writer.other { "" } else { "this machine: " };
            text += &format!("writer        {who}{}\n", writer.text);
        }
    }
    text
}
