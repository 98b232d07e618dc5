//! How a verb ends badly: words for the person, a number for the script.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::resource::TargetError;

/// What a verb returns when it did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// 1 failed, 2 wrong usage, 3 not found, 4 refused as invalid.
    pub code: u8,
    /// Printed after `error:`; empty when everything is said already.
    pub message: String,
}

impl Failure {
    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// What was sent is not valid; the problems are in `message`, or printed already.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: 4, message: message.into() }
    }

    /// Any error, with its chain of causes.
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::failed(coracle_base::chain(error))
    }

    /// Prints it and gives the exit code.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        if !self.message.is_empty() {
            crate::output::error(&self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Refused { code: 404, .. } => 3,
            ClientError::Refused { code: 400 | 422, .. } => 4,
            _ => 1,
        };
        Self { code, message: coracle_base::chain(&error) }
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        Self::usage(error.to_string())
    }
}
