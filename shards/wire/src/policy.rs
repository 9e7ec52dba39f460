//! The policy of a stream: a JSON object, as PUT and as stored.
//!
//! It does not know how a policy is carried out.

/// Policy of a stream, as PUT and as stored (JSON). Unknown fields are refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Versions of a key that history and scan show, at least one; older ones are freed. `None` = all.
    pub history_depth: Option<u32>,
    /// Records older than this (log time) are not served, and freed; `None` = kept.
    pub max_age_seconds: Option<u64>,
    /// Bytes of its newest records that a stream keeps, shared equally by the shards; older records are not served, and
    /// freed. `None` = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// How long an Idempotency-Key is remembered; `None` = the server's default. (Producers: the server's default.)
    pub dedup_window_seconds: Option<u64>,
}

impl Policy {
    /// From a JSON object; the error says what is wrong with it.
    pub fn from_json(bytes: &[u8]) -> Result<Policy, String> {
        // serde would also read a struct from an array, by position.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err("policy is not a JSON object".to_owned());
        }
        let policy: Policy = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if policy.history_depth == Some(0) {
            return Err("history_depth 0 would show nothing: 1 shows the newest".to_owned());
        }
        Ok(policy)
    }
}
