//! The health of a store, as its thread reports it to the store's users.

use super::replica::Standing;

/// The health of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nobody has looked yet.
    Opening,
    /// It has no events yet, and no files.
    Absent,
    /// It works.
    Open(Standing),
    /// It can be read, but stores nothing at present. Holds the reason and what to do.
    ReadOnly(Standing, String),
    /// It can't be used at present. Holds the reason and what to do.
    Failed(String),
}

impl Health {
    /// Returns where the store stands, if that is known.
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Open(standing) | Self::ReadOnly(standing, _) => Some(standing),
            Self::Opening | Self::Absent | Self::Failed(_) => None,
        }
    }

    /// Returns why nothing can be stored, if that is so.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::ReadOnly(_, why) | Self::Failed(why) => Some(why),
            Self::Opening | Self::Absent | Self::Open(_) => None,
        }
    }
}
