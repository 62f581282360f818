//! How a scenario's file writes policies, what buckets do by themselves, and kinds of workloads.

/// Policies as people write them: `async`, `async block:20ops`, `sync:majority`, `sync:2 degrade:1500` (milliseconds),
/// `active-active`.
pub(crate) mod policy {
    use meridian_types::{MaxLag, OnPartition, Policy};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(policy: &Policy, serializer: S) -> Result<S::Ok, S::Error> {
        match policy {
            Policy::Sync { acks, on_partition: OnPartition::Block } => format!("sync:{acks}").serialize(serializer),
            Policy::Sync { acks, on_partition: OnPartition::Degrade { after_ms } } => {
                format!("sync:{acks} degrade:{after_ms}").serialize(serializer)
            }
            Policy::Async { max_lag: Some(MaxLag { bound, on_breach }) } => {
                format!("async {on_breach}:{bound}").serialize(serializer)
            }
            Policy::Async { max_lag: None } | Policy::ActiveActive => policy.to_string().serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Policy, D::Error> {
        let text = String::deserialize(deserializer)?;
        parsed(&text).map_err(serde::de::Error::custom)
    }

    fn parsed(text: &str) -> Result<Policy, String> {
        let (policy, setting) = text.split_once(' ').map_or((text, None), |(policy, rest)| (policy, Some(rest)));
        let setting = setting.map(|it| it.split_once(':').ok_or(format!("`{it}` is no setting: it has no `:`")));
        let why = |why: &dyn std::fmt::Display| format!("`{text}` is no policy: {why}");
        let policy = match policy.strip_prefix("sync:") {
            Some(acks) => acks.parse().map(Policy::sync),
            None => policy.parse(),
        };
        match (policy.map_err(|it| why(&it))?, setting.transpose()?) {
            (policy, None) => Ok(policy),
            (Policy::Sync { acks, .. }, Some(("degrade", after))) => {
                let on_partition = OnPartition::Degrade { after_ms: after.parse().map_err(|it| why(&it))? };
                Ok(Policy::Sync { acks, on_partition })
            }
            (Policy::Async { .. }, Some((on_breach, bound))) => {
                let on_breach = on_breach.parse().map_err(|it| why(&it))?;
                let bound = bound.parse().map_err(|it| why(&it))?;
                Ok(Policy::Async { max_lag: Some(MaxLag { bound, on_breach }) })
            }
            (_, Some((setting, _))) => Err(why(&format!("`{setting}` does not go with it"))),
        }
    }
}

/// What a bucket does by itself when its primary is lost: `manual`, `observe-only`, `zero-loss`, `bounded:5s,20ops`.
pub(super) mod auto {
    use meridian_types::AutoMode;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(mode: &AutoMode, serializer: S) -> Result<S::Ok, S::Error> {
        match mode {
            AutoMode::Bounded { max_lag } => format!("bounded:{max_lag}").serialize(serializer),
            AutoMode::Manual | AutoMode::ObserveOnly | AutoMode::ZeroLoss => mode.to_string().serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AutoMode, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (word, bound) = text.split_once(':').map_or((text.as_str(), None), |(word, bound)| (word, Some(bound)));
        let bound = bound.map(str::parse).transpose().map_err(serde::de::Error::custom)?;
        AutoMode::of_words(word, bound).map_err(serde::de::Error::custom)
    }
}

/// Kinds of workloads by their names.
pub(super) mod kind {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::workload::Kind;

    const NAMES: [(Kind, &str); 7] = [
        (Kind::Register, "register"),
        (Kind::Counter, "counter"),
        (Kind::Append, "append"),
        (Kind::Chain, "chain"),
        (Kind::Bank, "bank"),
        (Kind::Session, "session"),
        (Kind::ActiveActive, "active-active"),
    ];

    pub(crate) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        NAMES.iter().find(|(known, _)| known == kind).map_or("", |(_, name)| name).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map(|(kind, _)| *kind).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            serde::de::Error::custom(format!("`{name}` is no kind of workload: use {}", names.join(", ")))
        })
    }
}
