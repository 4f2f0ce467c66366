//! When hosts were last heard, many in one statement. Ten thousand hosts are heard some hundred
//! times a second, and each statement is a way to the database's thread and back.
//!
//! Not here: which contacts are written when; they gather in the writer.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use super::rows::micros;
use super::sql::Session;
use super::{Contact, StoreError};

/// Contacts of one statement: a few sizes, so that a few statements are prepared.
const SIZES: [usize; 4] = [64, 16, 4, 1];

/// Contacts that are to be written: of each host the last.
#[derive(Debug, Default)]
pub(super) struct Heard<'a>(BTreeMap<&'a str, Contact>);

impl<'a> Heard<'a> {
    /// Notes one; what it does not say stays.
    pub(super) fn note(&mut self, contact: &'a Contact) {
        let known = self.0.entry(&contact.uid).or_default();
        known.agent = contact.agent.or(known.agent);
        known.daemon = contact.daemon.or(known.daemon);
    }

    /// Writes all.
    pub(super) async fn write(self, session: &mut Session) -> Result<(), StoreError> {
        let all: Vec<_> = self.0.into_iter().collect();
        let mut left = all.as_slice();
        for size in SIZES {
            while let Some((some, rest)) = left.split_at_checked(size) {
                let values = some.iter().flat_map(|(uid, contact)| {
                    [(*uid).into(), micros(contact.agent), micros(contact.daemon)]
                });
                let sql = AssertSqlSafe(upsert(size));
                session.run(sql, values.collect()).await?;
                left = rest;
            }
        }
        Ok(())
    }
}

fn upsert(count: usize) -> String {
    let row = |at: usize| format!("(${}, ${}, ${})", at * 3 + 1, at * 3 + 2, at * 3 + 3);
    let rows: Vec<_> = (0..count).map(row).collect();
    format!(
        "INSERT INTO contacts (uid, agent_seen, daemon_seen) VALUES {} \
         ON CONFLICT (uid) DO UPDATE SET \
         agent_seen = COALESCE(excluded.agent_seen, contacts.agent_seen), \
         daemon_seen = COALESCE(excluded.daemon_seen, contacts.daemon_seen)",
        rows.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_each_value_once() {
        assert!(upsert(2).contains("VALUES ($1, $2, $3), ($4, $5, $6) ON CONFLICT"));
    }
}
