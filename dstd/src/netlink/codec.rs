//! Netlink attributes: a checked writer and a reader that never trusts a length.
//!
//! Owns the TLV format. Used by `message`, `family` and `wire`. Pure. The writer is ours as
//! netlink-packet-core cuts lengths to 16 bits in silence; the reader rests on its iterator.

use netlink_packet_core::{NLA_F_NESTED, NlasIterator};

use super::error::NetlinkError;

const HEADER: usize = 4;
const ALIGN: usize = 4;

/// Attributes under construction.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Writer::default()
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) -> Result<(), NetlinkError> {
        let length = u16::try_from(HEADER + value.len())
            .map_err(|_| NetlinkError::TooLong("an attribute"))?;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        let padded = self.bytes.len().next_multiple_of(ALIGN);
        self.bytes.resize(padded, 0);
        Ok(())
    }

    pub fn put_str(&mut self, kind: u16, value: &str) -> Result<(), NetlinkError> {
        self.put(kind, &[value.as_bytes(), b"\0"].concat())
    }

    pub fn put_u8(&mut self, kind: u16, value: u8) -> Result<(), NetlinkError> {
        self.put(kind, &[value])
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) -> Result<(), NetlinkError> {
        self.put(kind, &value.to_ne_bytes())
    }

    pub fn put_i32(&mut self, kind: u16, value: i32) -> Result<(), NetlinkError> {
        self.put(kind, &value.to_ne_bytes())
    }

    pub fn put_u64(&mut self, kind: u16, value: u64) -> Result<(), NetlinkError> {
        self.put(kind, &value.to_ne_bytes())
    }

    pub fn put_nest(&mut self, kind: u16, inner: Writer) -> Result<(), NetlinkError> {
        self.put(kind | NLA_F_NESTED, &inner.bytes)
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// One attribute that was read; `what` names it in errors.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    pub kind: u16,
    value: &'a [u8],
}

/// The attributes of a message or a nest, in order. Unknown kinds are the caller's to skip.
pub fn read(bytes: &[u8]) -> Result<Vec<Attribute<'_>>, NetlinkError> {
    let mut attributes = Vec::new();
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute.map_err(|e| NetlinkError::BadAnswer(e.to_string()))?;
        let value = bytes_of(&attribute);
        attributes.push(Attribute {
            kind: attribute.kind(),
            value,
        });
    }
    Ok(attributes)
}

/// The value with the message's lifetime, which the library's accessor shortens.
fn bytes_of<'a>(attribute: &netlink_packet_core::NlaBuffer<&'a [u8]>) -> &'a [u8] {
    let whole = attribute.into_inner();
    let end = usize::from(attribute.length());
    whole.get(HEADER..end).unwrap_or(&[])
}

impl<'a> Attribute<'a> {
    pub fn bytes(&self) -> &'a [u8] {
        self.value
    }

    fn array<const N: usize>(&self) -> Result<[u8; N], NetlinkError> {
        self.value.try_into().map_err(|_| {
            NetlinkError::BadAnswer(format!(
                "attribute {} has {} bytes, not {N}",
                self.kind,
                self.value.len()
            ))
        })
    }

    pub fn u8(&self) -> Result<u8, NetlinkError> {
        self.array().map(u8::from_ne_bytes)
    }

    pub fn u16(&self) -> Result<u16, NetlinkError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub fn u32(&self) -> Result<u32, NetlinkError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn u64(&self) -> Result<u64, NetlinkError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// One u64 after the other, as many as there are.
    pub fn u64s(&self) -> Result<Vec<u64>, NetlinkError> {
        let (numbers, rest) = self.value.as_chunks();
        if !rest.is_empty() {
            return Err(NetlinkError::BadAnswer(format!(
                "attribute {} has {} bytes, which are no whole numbers",
                self.kind,
                self.value.len()
            )));
        }
        Ok(numbers.iter().copied().map(u64::from_ne_bytes).collect())
    }

    /// Text up to the first NUL; the kernel may or may not terminate it.
    pub fn text(&self) -> String {
        let end = self.value.iter().position(|b| *b == 0);
        String::from_utf8_lossy(&self.value[..end.unwrap_or(self.value.len())]).into_owned()
    }

    pub fn nest(&self) -> Result<Vec<Attribute<'a>>, NetlinkError> {
        read(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_not_cut() {
        let longest = vec![7; usize::from(u16::MAX) - HEADER];
        let mut writer = Writer::new();
        writer.put(1, &longest).unwrap();
        let bytes = writer.into_bytes();
        assert_eq!(read(&bytes).unwrap()[0].bytes(), longest);
        let mut writer = Writer::new();
        let error = writer.put(1, &[&longest[..], &[7]].concat()).unwrap_err();
        assert!(matches!(error, NetlinkError::TooLong(_)), "{error}");
        assert!(writer.into_bytes().is_empty());
    }

    #[test]
    fn wrong_sizes_are_named() {
        let mut writer = Writer::new();
        writer.put(9, &[1, 2, 3]).unwrap();
        let bytes = writer.into_bytes();
        let error = read(&bytes).unwrap()[0].u32().unwrap_err().to_string();
        assert!(error.contains("attribute 9 has 3 bytes, not 4"), "{error}");
        assert!(read(&[3, 0, 1, 0]).is_err(), "shorter than its own header");
        assert!(read(&[9, 0, 1, 0, 0]).is_err(), "longer than the message");
    }

    proptest! {
        #[test]
        fn attributes_survive_the_wire(
            values in proptest::collection::vec((0u16..0x3fff, any::<Vec<u8>>()), 0..8),
            text in "[^\\x00]{0,40}", n: u64, m: u32, k: i32,
        ) {
            let mut inner = Writer::new();
            for (kind, value) in &values {
                inner.put(*kind, value).unwrap();
            }
            let mut writer = Writer::new();
            writer.put_nest(1, inner).unwrap();
            writer.put_str(2, &text).unwrap();
            writer.put_u64(3, n).unwrap();
            writer.put_u32(4, m).unwrap();
            writer.put_i32(5, k).unwrap();
            writer.put_u8(6, m as u8).unwrap();
            let bytes = writer.into_bytes();
            prop_assert_eq!(bytes.len() % ALIGN, 0);
            let all = read(&bytes).unwrap();
            let kinds: Vec<u16> = all.iter().map(|a| a.kind).collect();
            prop_assert_eq!(kinds, [1, 2, 3, 4, 5, 6]);
            let nest: Vec<(u16, Vec<u8>)> = all[0].nest().unwrap().iter()
                .map(|a| (a.kind, a.bytes().to_vec())).collect();
            prop_assert_eq!(nest, values);
            prop_assert_eq!(all[1].text(), text);
            prop_assert_eq!(all[2].u64().unwrap(), n);
            prop_assert_eq!(all[3].u32().unwrap(), m);
            prop_assert_eq!(all[4].u32().unwrap() as i32, k);
            prop_assert_eq!(all[5].u8().unwrap(), m as u8);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            for attribute in read(&bytes).unwrap_or_default() {
                let _ = (attribute.u16(), attribute.text());
                let _ = attribute.nest().map(|n| n.len());
            }
        }
    }
}
