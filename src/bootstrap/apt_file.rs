//! The site's own files for apt, and whether one of them has apt check nothing (sources.list(5)).

/// Options that lower what apt checks, in small letters.
const LOWERING: [&str; 4] = ["trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"];

/// A file of apt's in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AptFile {
    /// In the guest, relative to its root.
    pub path: String,
    pub content: Vec<u8>,
}

impl AptFile {
    /// Whether it is a source that has apt check less, or says something that is not understood here: apt knows several
    /// spellings of `yes`, escapes and quotes. Only a plain `no` lowers nothing.
    pub fn is_unsigned(&self) -> bool {
        let text = String::from_utf8_lossy(&self.content).to_lowercase();
        match self.path.rsplit_once('.') {
            Some((_, "list")) => text.lines().any(line_lowers),
            Some((_, "sources")) => fields(&text).iter().any(|(name, value)| lowers(name, value)),
            _ => false,
        }
    }

    /// Whether it may have a URL with a user and a password: apt decodes escapes and takes quotes away.
    pub fn may_have_credentials(&self) -> bool {
        let text = String::from_utf8_lossy(&self.content);
        let is_source = self.path.ends_with(".list") || self.path.ends_with(".sources");
        is_source
            && text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(['@', '%', '"']))
    }
}

fn lowers(name: &str, value: &str) -> bool {
    LOWERING.contains(&name) && !["no", "false", "0"].contains(&value)
}

/// Of a line `deb [OPTIONS] URI SUITE COMPONENTS`.
fn line_lowers(line: &str) -> bool {
    let after_type = line.trim().split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
    let Some(rest) = after_type.strip_prefix('[').filter(|_| !line.trim().starts_with('#')) else {
        return false;
    };
    // Without an end, with brackets in a word, or with what apt would decode, it is not understood here.
    let options = rest.split_once(']').map(|(options, _)| options);
    let Some(options) = options.filter(|options| !options.contains(['[', '%', '"', '\'', '\\'])) else {
        return true;
    };
    options.split_whitespace().any(|option| match option.split_once('=') {
        Some((name, value)) => lowers(name.trim_end_matches(['+', '-']), value),
        // `trusted = yes` is no option for apt; neither is it understood here.
        None => true,
    })
}

/// The fields of a file in the form of deb822(5), with what follows them on other lines.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut begins = true;
    for line in text.trim_start_matches('\u{feff}').lines().filter(|line| !line.starts_with('#')) {
        // What continues nothing is taken for a field.
        let is_continued = !begins && line.starts_with([' ', '\t']);
        begins = line.trim().is_empty();
        match (line.split_once(':'), fields.last_mut()) {
            (_, Some((_, value))) if is_continued => {
                value.push(' ');
                value.push_str(line.trim());
            }
            (Some((name, value)), _) => fields.push((name.trim().to_owned(), value.trim().to_owned())),
            (None, _) => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ending: &str, content: &str) -> AptFile {
        AptFile { path: format!("etc/apt/sources.list.d/x.{ending}"), content: content.into() }
    }

    #[test]
    fn sources_that_check_nothing_are_found_in_every_spelling_of_apts() {
        let deb = "http://site.example/ trixie main";
        for options in [
            "[trusted=yes]",
            "[ Trusted=YES ]",
            "[arch=amd64 trusted=1]",
            "[trusted=01]",
            "[trusted=\"yes\"]",
            "[ \"trusted=yes\" ]",
            "[trusted=%79es]",
            "[%74rusted=yes]",
            "[allow-insecure=\"yes\"]",
            "[allow-weak=true]",
            "[trusted+=yes]",
            "[trusted = yes]",
            "[lang=x[y]z trusted=yes]",
            "[arch=a[b]c trusted=yes]",
            "[lang=[x]y allow-insecure=yes]",
            "[target=a[]b trusted=yes]",
            "[lang=x[ ]z trusted=yes]",
            "[lang-=x[y]z allow-insecure=yes]",
            "[trusted=yes",
            "[allow-downgrade-to-insecure=on]",
        ] {
            for line in [format!("deb {options} {deb}"), format!("# x\n  deb\t{options} {deb}\n")] {
                assert!(file("list", &line).is_unsigned(), "{line}");
                assert!(!file("gpg", &line).is_unsigned(), "{line}");
            }
        }
        for value in
            [" yes", "yes", " 1", " 01", " 0x1", "\n yes", "\n# x\n yes", " no\n yes", "  ON", " with", ""]
        {
            for name in ["Trusted", "trusted", "Allow-Insecure", "Trusted "] {
                let text = format!("Types: deb\n{name}:{value}\nURIs: http://site.example/\n");
                assert!(file("sources", &text).is_unsigned(), "{text}");
            }
        }
    }

    #[test]
    fn sources_that_check_everything_are_let_through() {
        for line in [
            "deb http://trusted.example/trusted=yes trixie main",
            "deb [signed-by=/etc/apt/keyrings/x.asc arch=amd64] http://[2001:db8::1]/ trixie main",
            "deb http://[2001:db8::1]/ trixie main",
            "deb [trusted=no] http://site.example/ trixie main",
            "deb [trusted=false allow-weak=0] http://site.example/ trixie main",
            "deb file:/srv/repo trixie main # see [wiki]",
            "deb cdrom:[Debian x y]/ trixie main",
            "# deb [trusted=yes] http://site.example/ trixie main",
            "",
        ] {
            assert!(!file("list", line).is_unsigned(), "{line}");
        }
        let fields = "# Trusted: yes\nTypes: deb\nURIs: http://trusted/\nTrusted: no\nSuites: x\n\nTypes: deb\nDescription:\n trusted\n";
        assert!(!file("sources", fields).is_unsigned());
    }

    #[test]
    fn credentials_in_a_source_are_seen() {
        for line in [
            "deb http://u:p@site.example/ trixie main",
            "deb http:%2f%2fu:p@site.example/ trixie main",
            "deb http://u:p%40site.example/ trixie main",
            "deb \"http:\"//u:p@site.example/ trixie main",
        ] {
            assert!(file("list", line).may_have_credentials(), "{line}");
        }
        assert!(file("sources", "Types: deb\nURIs:\n https://u:p@site.example/\n").may_have_credentials());
        assert!(!file("list", "# a@b\ndeb http://site.example/ trixie main").may_have_credentials());
    }
}
