//! The steps of a decision, each a function over the facts, the draft and the report. [`mod@crate::plan`] lists them in
//! order.

pub(crate) mod clock;
pub(crate) mod correlated;
pub(crate) mod data;
pub(crate) mod documents;
pub(crate) mod edges;
pub(crate) mod expire;
pub(crate) mod levels;
pub(crate) mod primary;
pub(crate) mod recover;
pub(crate) mod request;
pub(crate) mod rollout;
pub(crate) mod routes;
pub(crate) mod settle;
pub(crate) mod spread;
pub(crate) mod stacks;
pub(crate) mod taken_back;
