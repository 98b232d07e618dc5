//! Whether the one who asks may. Roles come later; until then nothing is given away.

use crate::status::Failure;
use crate::who::Who;

/// Whether one may do everything: the administrators. Everybody else may do nothing yet.
pub(crate) fn all(who: &Who) -> bool {
    who.groups.iter().any(|group| group == "system:masters")
}

/// Whether one may do `verb` on `what`.
///
/// # Errors
/// The refusal to send: 401 to a stranger, 403 to one who is known.
pub(crate) fn check(who: &Who, verb: &str, what: &str) -> Result<(), Failure> {
    if all(who) {
        return Ok(());
    }
    if !who.is_known() {
        return Err(Failure::unauthorized("a client certificate of this cluster or a bearer token is needed"));
    }
    Err(Failure::forbidden(format!(
        "{what} is forbidden: User \"{}\" cannot {verb} it: only members of system:masters may",
        who.user
    )))
}
