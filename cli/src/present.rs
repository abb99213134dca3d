//! The output of commands: tables for people, JSON with a schema number for programs.

mod action;
mod applying;
mod history;
mod json;
mod plan;
mod status;
mod text;
mod why;

pub(crate) use self::{
    action::{action, asked_for, waited},
    applying::{applied, difference, document_in_force},
    history::history,
    json::document,
    plan::plan,
    status::status,
    text::{plain, span, table},
    why::why,
};

#[cfg(test)]
mod tests;
