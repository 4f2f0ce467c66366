//! The words that cross a wire.
