//! What is known of a setting, but for its value.

pub use super::kind::Kind;

/// One setting.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// Its variable in the shell files of the predecessor.
    pub legacy: Option<&'static str>,
    pub kind: Kind,
    /// Who may set it.
    pub by: SetBy,
    /// One sentence, ASCII, no line break.
    pub help: &'static str,
}

/// Who may set a setting. Whoever may set OS parameters need not be root of the node.
#[derive(Debug, Clone, Copy)]
pub enum SetBy {
    /// The node's own files alone.
    Files,
    /// Files, and the OS parameters of an instance, which win.
    Parameter,
    /// The same, but a parameter may not say everything: the function says what is expected of a text that it refuses.
    LimitedParameter(fn(&str) -> Option<&'static str>),
}

impl Key {
    /// Whether Ganeti may pass it as an OS parameter.
    pub fn is_parameter(&self) -> bool {
        !matches!(self.by, SetBy::Files)
    }

    /// What is expected of a parameter of which the text is refused.
    pub(super) fn refusal_as_parameter(&self, text: &str) -> Option<&'static str> {
        match self.by {
            SetBy::LimitedParameter(refusal) => refusal(text),
            SetBy::Files | SetBy::Parameter => None,
        }
    }
}
