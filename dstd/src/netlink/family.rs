//! Finding the family: its number and that of its multicast group, asked of "nlctrl".
//!
//! Owns a minimal reading of CTRL_CMD_GETFAMILY's answer (the library's rejects attributes
//! that it doesn't know). Used by `client` and `events`. Pure: never touches a socket.

use nix::errno::Errno;

use super::codec::{self, Writer};
use super::error::NetlinkError;
use super::numbers;

/// The control family's fixed number, and that of its multicast group "notify".
pub const GENL_ID_CTRL: u16 = 0x10;
pub const NOTIFY_GROUP: u32 = 0x10;
pub const CTRL_CMD_DELFAMILY: u8 = 2;
pub const CTRL_CMD_GETFAMILY: u8 = 3;

const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_VERSION: u16 = 3;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    pub id: u16,
    /// The multicast group "events".
    pub events: u32,
}

/// The attributes of the question for family `name`.
pub fn question(name: &str) -> Result<Vec<u8>, NetlinkError> {
    let mut writer = Writer::new();
    writer.put_str(CTRL_ATTR_FAMILY_NAME, name)?;
    Ok(writer.into_bytes())
}

/// "No such family" means that the module isn't there.
pub fn absent(error: NetlinkError) -> NetlinkError {
    match error {
        NetlinkError::Refused {
            errno: Errno::ENOENT,
            ..
        } => NetlinkError::FamilyAbsent,
        other => other,
    }
}

pub fn answer(attributes: &[u8]) -> Result<Family, NetlinkError> {
    let (mut id, mut version, mut events) = (None, None, None);
    for attribute in codec::read(attributes)? {
        match attribute.kind {
            CTRL_ATTR_FAMILY_ID => id = Some(attribute.u16()?),
            CTRL_ATTR_VERSION => version = Some(attribute.u32()?),
            CTRL_ATTR_MCAST_GROUPS => {
                for group in attribute.nest()? {
                    events = events.or(events_group(&group.nest()?)?);
                }
            }
            _ => {}
        }
    }
    let known = numbers::FAMILY_VERSION;
    match (id, version, events) {
        (Some(id), Some(found), Some(events)) if found == known => Ok(Family { id, events }),
        (Some(_), Some(found), _) if found != known => Err(NetlinkError::Version { found, known }),
        _ => Err(NetlinkError::BadAnswer(
            "the family has no number, version or group `events`".to_owned(),
        )),
    }
}

fn events_group(group: &[codec::Attribute<'_>]) -> Result<Option<u32>, NetlinkError> {
    let (mut ours, mut id) = (false, None);
    for attribute in group {
        match attribute.kind {
            CTRL_ATTR_MCAST_GRP_NAME => ours = attribute.text() == numbers::MCGRP_EVENTS,
            CTRL_ATTR_MCAST_GRP_ID => id = Some(attribute.u32()?),
            _ => {}
        }
    }
    Ok(id.filter(|_| ours))
}

/// Whether a message of "nlctrl" tells that family `id` is gone.
pub fn is_end_of(id: u16, command: u8, attributes: &[u8]) -> bool {
    command == CTRL_CMD_DELFAMILY
        && codec::read(attributes).is_ok_and(|all| {
            all.iter()
                .any(|a| a.kind == CTRL_ATTR_FAMILY_ID && a.u16().is_ok_and(|found| found == id))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, id: u32) -> Writer {
        let mut writer = Writer::new();
        writer.put_u32(CTRL_ATTR_MCAST_GRP_ID, id).unwrap();
        writer.put_str(CTRL_ATTR_MCAST_GRP_NAME, name).unwrap();
        writer.put_u32(99, 1).unwrap();
        writer
    }

    fn described(version: u32, group_name: &str) -> Vec<u8> {
        let mut groups = Writer::new();
        groups.put_nest(1, group("other", 4)).unwrap();
        groups.put_nest(2, group(group_name, 5)).unwrap();
        let mut writer = Writer::new();
        writer.put_str(CTRL_ATTR_FAMILY_NAME, "dm-dst").unwrap();
        writer
            .put(CTRL_ATTR_FAMILY_ID, &33u16.to_ne_bytes())
            .unwrap();
        writer.put_u32(CTRL_ATTR_VERSION, version).unwrap();
        writer.put_nest(CTRL_ATTR_MCAST_GROUPS, groups).unwrap();
        writer.put(4242, b"from a newer kernel").unwrap();
        writer.into_bytes()
    }

    #[test]
    fn unknown_attributes_are_no_obstacle() {
        let family = answer(&described(1, "events")).unwrap();
        assert_eq!(family, Family { id: 33, events: 5 });
    }

    #[test]
    fn another_version_or_no_group_is_told() {
        let error = answer(&described(2, "events")).unwrap_err();
        assert!(
            matches!(error, NetlinkError::Version { found: 2, known: 1 }),
            "{error}"
        );
        let error = answer(&described(1, "event")).unwrap_err().to_string();
        assert!(error.contains("group `events`"), "{error}");
        assert!(answer(b"").is_err());
    }

    #[test]
    fn only_our_own_end_counts() {
        let bytes = described(1, "events");
        assert!(is_end_of(33, CTRL_CMD_DELFAMILY, &bytes));
        assert!(!is_end_of(34, CTRL_CMD_DELFAMILY, &bytes));
        assert!(!is_end_of(33, 1, &bytes));
    }
}
