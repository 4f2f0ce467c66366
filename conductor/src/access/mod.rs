//! Who may do what. Every call passes one choke point, [`door::guard`], which looks up the call in
//! [`table::TABLE`] and lets nobody through for whom no line speaks.
//!
//! Handlers check no roles. What they may show of many things they are told by
//! [`caller::Visible`], without which lists cannot be read at all.

pub(crate) mod caller;
pub(crate) mod door;
mod jwt;
pub(crate) mod oidc;
pub(crate) mod peer;
pub(crate) mod refusals;
pub(crate) mod registry;
pub(crate) mod table;
