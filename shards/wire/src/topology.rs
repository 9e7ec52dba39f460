//! Topology: which shard serves which slots, and on which port.
//!
//! The binary form is drawn in PROTOCOL.md. It does not know how the map was made.

use crate::bytes::{Reader, len_u16};

/// slots -> shard -> ports, as served in every protocol.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Topology {
    /// Identity of the data directory, as text.
    pub store: String,
    /// Grows with every change of the map.
    pub map_epoch: u64,
    /// In order of slots.
    pub shards: Vec<ShardRoute>,
}

/// One shard's part of the map.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShardRoute {
    /// Number of the shard, from 0.
    pub shard: u16,
    /// Number of the log it runs.
    pub log: u32,
    /// First slot, included.
    pub slot_first: u16,
    /// Last slot, included.
    pub slot_last: u16,
    /// Host name or IP address.
    pub address: String,
    /// The shard's own port for the native protocol.
    pub native_port: u16,
}

impl Topology {
    /// Appends the binary form. Texts are bounded by 64 KiB, shards by 65,535.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = u16::try_from(self.shards.len()).expect("one shard per slot at most");
        out.extend_from_slice(&self.map_epoch.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&len_u16(self.store.as_bytes()).to_le_bytes());
        out.extend_from_slice(self.store.as_bytes());
        for route in &self.shards {
            out.extend_from_slice(&route.shard.to_le_bytes());
            out.extend_from_slice(&route.native_port.to_le_bytes());
            out.extend_from_slice(&route.slot_first.to_le_bytes());
            out.extend_from_slice(&route.slot_last.to_le_bytes());
            out.extend_from_slice(&route.log.to_le_bytes());
            out.extend_from_slice(&len_u16(route.address.as_bytes()).to_le_bytes());
            out.extend_from_slice(route.address.as_bytes());
        }
    }

    /// Reads the binary form. Bytes behind it are left for later versions and ignored.
    pub fn decode(bytes: &[u8]) -> Option<Topology> {
        let mut reader = Reader::new(bytes);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let map_epoch = reader.u64()?;
        let count = reader.u16()?;
        let store_bytes = reader.u16()?;
        let store = text(reader.bytes(usize::from(store_bytes))?)?;
        let mut shards = Vec::new();
        for _ in 0..count {
            let shard = reader.u16()?;
            let native_port = reader.u16()?;
            let slot_first = reader.u16()?;
            let slot_last = reader.u16()?;
            let log = reader.u32()?;
            let address_bytes = reader.u16()?;
            let address = text(reader.bytes(usize::from(address_bytes))?)?;
            shards.push(ShardRoute {
                shard,
                log,
                slot_first,
                slot_last,
                address,
                native_port,
            });
        }
        Some(Topology {
            store,
            map_epoch,
            shards,
        })
    }

    /// The JSON that `GET /v1/topology` answers.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_form_reads_back_and_json_names_every_field() {
        let topology = Topology {
            store: "s".to_owned(),
            map_epoch: 3,
            shards: vec![ShardRoute {
                shard: 0,
                log: 9,
                slot_first: 0,
                slot_last: 16383,
                address: "::1".to_owned(),
                native_port: 17601,
            }],
        };
        let mut bytes = Vec::new();
        topology.encode(&mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(Topology::decode(&bytes[..cut]), None);
        }
        assert_eq!(Topology::decode(&bytes), Some(topology.clone()));
        bytes.push(0);
        assert_eq!(Topology::decode(&bytes), Some(topology.clone()));
        assert_eq!(
            topology.to_json(),
            r#"{"store":"s","map_epoch":3,"shards":[{"shard":0,"log":9,"slot_first":0,"slot_last":16383,"address":"::1","native_port":17601}]}"#
        );
    }
}
