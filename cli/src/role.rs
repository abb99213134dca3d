//! The name of a process on the command line.

use identity::Role;

/// Reads `edge/NAME` and the like. People have no place in it.
pub(crate) fn parse_role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(Role::Operator(_)) => Err("operators log in: `meridian login NAME --roles ROLE`".to_owned()),
        Ok(role) => Ok(role),
        Err(_) => Err(
            "write edge/NAME, dns/NAME, control-plane/NAME or stack/REGION/NAME; names have letters, digits, \
                       '.', '-' and '_'"
                .to_owned(),
        ),
    }
}
