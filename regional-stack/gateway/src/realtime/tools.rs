//! The functions that a client offers, and the choice of the one to call.
//!
//! There is no language model here that could weigh what a user wants: a function is called when the assistant does not know
//! the command itself and the user orders what the function's name says, in all of its words, or when the client insists. Its arguments
//! are words of the user, picked by the types and names of the function's parameters. Parameters that the words do not name are left out.

mod arguments;
mod choosing;
mod output;
mod parsing;
mod tool;
mod words;

pub(super) use self::{
    choosing::choose,
    output::spoken_output,
    parsing::{parse, parse_choice},
    tool::{Choice, Tool, ToolChoice},
};

#[cfg(test)]
mod tests;
