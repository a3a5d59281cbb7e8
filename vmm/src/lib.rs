//! One tenant VM in one confined process.
