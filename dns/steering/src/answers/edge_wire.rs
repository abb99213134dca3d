//! The records of one edge, written once for all answers.

use std::sync::Arc;

use super::{A_BYTES, AAAA_BYTES};
use crate::{Binding, RecordData, service::EdgeFacts, wire};

/// The records of one edge, as bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EdgeWire {
    pub(super) v4: Vec<[u8; A_BYTES]>,
    pub(super) v6: Vec<[u8; AAAA_BYTES]>,
    pub(super) https: Box<[u8]>,
    pub(super) svcb: Box<[u8]>,
}

impl EdgeWire {
    pub(crate) fn new(edge: &EdgeFacts, alpn: &Arc<[Box<str>]>) -> Self {
        fn fixed<const N: usize>(data: &RecordData) -> [u8; N] {
            let bytes = bytes(data);
            let mut record = [0; N];
            record.copy_from_slice(&bytes);
            record
        }
        fn bytes(data: &RecordData) -> Vec<u8> {
            let mut bytes = Vec::new();
            wire::record(&mut bytes, 0, data, None);
            bytes
        }
        let binding = binding(edge, 0, alpn);
        Self {
            v4: edge.v4.iter().map(|address| fixed(&RecordData::A(*address))).collect(),
            v6: edge
                .v6
                .iter()
                .map(|address| fixed(&RecordData::Aaaa(*address)))
                .collect(),
            https: bytes(&RecordData::Https(binding.clone())).into(),
            svcb: bytes(&RecordData::Svcb(binding)).into(),
        }
    }
}

pub(super) fn binding(edge: &EdgeFacts, priority: u16, alpn: &Arc<[Box<str>]>) -> Binding {
    Binding {
        priority,
        target: edge.name.clone(),
        alpn: alpn.clone(),
        port: edge.port,
        v4: edge.v4.clone(),
        v6: edge.v6.clone(),
    }
}
