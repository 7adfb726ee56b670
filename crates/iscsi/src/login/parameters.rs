//! Operational parameters: what each key means, and our answer to it (RFC 7143 13, spec B.4).

use crate::text::number;
use crate::wire::MAX_DATA_SEGMENT_BYTES;

/// What a connection and its session agreed on; what was not mentioned has its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// Longest data segment that the initiator takes.
    pub(crate) max_send_bytes: u32,
    pub(crate) max_burst_bytes: u32,
    first_burst_bytes: u32,
    pub(crate) immediate_data: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            max_send_bytes: 8192,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            immediate_data: true,
        }
    }
}

/// Our side of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The key's result.
    Value(String),
    /// The key declares something and wants no answer.
    Taken,
}

const MAX_BURST_BYTES: u64 = 1 << 20;
const MAX_FIRST_BURST_BYTES: u64 = 262_144;
const MAX_24_BITS: u64 = (1 << 24) - 1;

impl Parameters {
    /// Longest data within a command PDU: what was agreed of the first burst, which no burst may exceed.
    pub(crate) fn max_immediate_bytes(&self) -> u32 {
        if self.immediate_data { self.first_burst_bytes.min(self.max_burst_bytes) } else { 0 }
    }

    /// Takes an offer and answers it. `offered_max_burst` is that key's value in the same text, if it is there: a first
    /// burst is answered by it, whichever of the two comes first.
    pub(crate) fn negotiate(&mut self, key: &str, value: &str, offered_max_burst: Option<&str>) -> Answer {
        match key {
            "HeaderDigest" => digest(value, &mut self.header_digest),
            "DataDigest" => digest(value, &mut self.data_digest),
            "MaxRecvDataSegmentLength" => match in_range(value, 512, MAX_24_BITS) {
                Some(bytes) => {
                    self.max_send_bytes = bytes as u32;
                    Answer::Taken
                }
                None => reject(),
            },
            "MaxBurstLength" => match max_burst(value) {
                Some(bytes) => {
                    self.max_burst_bytes = bytes;
                    Answer::Value(bytes.to_string())
                }
                None => reject(),
            },
            "FirstBurstLength" => {
                let limit = offered_max_burst.and_then(max_burst).unwrap_or(self.max_burst_bytes);
                match in_range(value, 512, MAX_24_BITS) {
                    Some(bytes) => {
                        self.first_burst_bytes = bytes.min(MAX_FIRST_BURST_BYTES).min(limit.into()) as u32;
                        Answer::Value(self.first_burst_bytes.to_string())
                    }
                    None => reject(),
                }
            }
            "ImmediateData" => match yes_or_no(value) {
                Some(yes) => {
                    self.immediate_data = yes;
                    Answer::Value(value.to_owned())
                }
                None => reject(),
            },
            "InitialR2T" | "DataPDUInOrder" | "DataSequenceInOrder" => match yes_or_no(value) {
                Some(_) => Answer::Value("Yes".into()),
                None => reject(),
            },
            "IFMarker" | "OFMarker" => match yes_or_no(value) {
                Some(_) => Answer::Value("No".into()),
                None => reject(),
            },
            "IFMarkInt" | "OFMarkInt" => Answer::Value("Irrelevant".into()),
            "MaxConnections" | "MaxOutstandingR2T" => result(in_range(value, 1, 65_535).map(|_| 1)),
            "DefaultTime2Wait" => result(in_range(value, 0, 3600)),
            "DefaultTime2Retain" => result(in_range(value, 0, 3600).map(|_| 0)),
            "ErrorRecoveryLevel" => result(in_range(value, 0, 2).map(|_| 0)),
            "iSCSIProtocolLevel" => result(in_range(value, 0, 31).map(|level| level.min(1))),
            "TaskReporting" => match value.split(',').any(|one| one == "RFC3720") {
                true => Answer::Value("RFC3720".into()),
                false => reject(),
            },
            _ => Answer::Value("NotUnderstood".into()),
        }
    }
}

/// What we declare ourselves.
pub(crate) fn declared() -> (&'static str, String) {
    ("MaxRecvDataSegmentLength", MAX_DATA_SEGMENT_BYTES.to_string())
}

fn reject() -> Answer {
    Answer::Value("Reject".into())
}

fn result(number: Option<u64>) -> Answer {
    number.map_or_else(reject, |number| Answer::Value(number.to_string()))
}

fn in_range(value: &str, least: u64, most: u64) -> Option<u64> {
    number(value).filter(|number| (least..=most).contains(number))
}

fn max_burst(value: &str) -> Option<u32> {
    in_range(value, 512, MAX_24_BITS).map(|bytes| bytes.min(MAX_BURST_BYTES) as u32)
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// The first that is offered and known: the initiator's order decides.
fn digest(value: &str, wanted: &mut bool) -> Answer {
    match value.split(',').find(|one| ["None", "CRC32C"].contains(one)) {
        Some(chosen) => {
            *wanted = chosen == "CRC32C";
            Answer::Value(chosen.to_owned())
        }
        None => reject(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_answer() {
        for (key, value, expected) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-crc,CRC32C", "CRC32C"),
            ("DataDigest", "X-crc", "Reject"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("InitialR2T", "No", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxRecvDataSegmentLength", "511", "Reject"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "0x10000", "65536"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("FirstBurstLength", "1048576", "262144"),
            ("FirstBurstLength", "4096", "4096"),
            ("FirstBurstLength", "", "Reject"),
            ("DefaultTime2Wait", "5", "5"),
            ("DefaultTime2Wait", "3601", "Reject"),
            ("DefaultTime2Retain", "20", "0"),
            ("MaxOutstandingR2T", "16", "1"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "2048~65535", "Irrelevant"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("iSCSIProtocolLevel", "0", "0"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("RDMAExtensions", "Yes", "NotUnderstood"),
            ("X-com.example.flag", "1", "NotUnderstood"),
        ] {
            let answer = Parameters::default().negotiate(key, value, None);
            assert_eq!(answer, Answer::Value(expected.into()), "{key}={value}");
        }
    }

    #[test]
    fn a_first_burst_never_exceeds_a_burst() {
        for (first, burst, agreed) in
            [("262144", "65536", "65536"), ("4096", "65536", "4096"), ("131072", "no", "131072")]
        {
            let mut parameters = Parameters::default();
            let answer = parameters.negotiate("FirstBurstLength", first, Some(burst));
            assert_eq!(answer, Answer::Value(agreed.into()), "first {first}, burst {burst}");
        }
        let mut parameters = Parameters::default();
        parameters.negotiate("MaxBurstLength", "1024", None);
        assert_eq!(parameters.max_immediate_bytes(), 1024, "the default of 65536 does not fit this burst");
        parameters.negotiate("ImmediateData", "No", None);
        assert_eq!(parameters.max_immediate_bytes(), 0);
    }

    #[test]
    fn a_declaration_is_taken() {
        let mut parameters = Parameters::default();
        assert_eq!(parameters.negotiate("MaxRecvDataSegmentLength", "512", None), Answer::Taken);
        assert_eq!(parameters.max_send_bytes, 512);
    }
}
