//! The host's Debian archives: what of its apt sources our own apt may use.

use super::DebianError;
use std::path::{Path, PathBuf};

/// One archive: its address and suites.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// As in sources.list(5).
    pub uri: String,
    /// Suite names.
    pub suites: Vec<String>,
}

/// Debian's own keyrings, newest name first.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// The keyring that every fetched list is checked with.
///
/// # Errors
/// [`DebianError::NoKeyring`].
pub fn keyring() -> Result<&'static Path, DebianError> {
    let found = KEYRINGS.iter().map(Path::new).find(|p| p.exists());
    found.ok_or_else(|| DebianError::NoKeyring(PathBuf::from(KEYRINGS[1])))
}

/// Reads the Debian archives that this host uses: `RINGER_APT_SOURCES` if set, or what stands under `etc` (the
/// host's /etc/apt).
///
/// # Errors
/// [`DebianError::NoSources`] if there is none, [`DebianError::Io`].
pub fn host_sources(etc: &Path) -> Result<Vec<Source>, DebianError> {
    let mut files = Vec::new();
    if let Some(f) = std::env::var_os("RINGER_APT_SOURCES") {
        files.push(PathBuf::from(f));
    } else {
        files.push(etc.join("sources.list"));
        if let Ok(dir) = std::fs::read_dir(etc.join("sources.list.d")) {
            files.extend(dir.flatten().map(|e| e.path()));
        }
        files.retain(|f| f.exists());
        files.sort();
    }
    let mut out: Vec<Source> = Vec::new();
    for f in &files {
        let ext = f.extension().and_then(|e| e.to_str());
        let parse = match ext {
            Some("sources") => parse_deb822,
            Some("list") => parse_list,
            _ => continue,
        };
        let text = std::fs::read_to_string(f).map_err(|e| DebianError::io("read", f, e))?;
        for s in parse(&text) {
            if !out.contains(&s) {
                out.push(s);
            }
        }
    }
    if out.is_empty() {
        return Err(DebianError::NoSources(files.first().map_or(etc, |f| f).to_owned()));
    }
    Ok(out)
}

/// Our own sources file for `sources`.
#[must_use]
pub fn render(sources: &[Source], keyring: &Path) -> String {
    let mut out = String::new();
    for s in sources {
        out.push_str(&format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: amd64\nTargets: Packages\nSigned-By: {}\n\n",
            s.uri,
            s.suites.join(" "),
            keyring.display()
        ));
    }
    out
}

/// Whether an address is that of Debian's main or security archive (or a snapshot or mirror list of one).
fn is_debian(uri: &str) -> bool {
    if uri.starts_with("cdrom:") {
        return false;
    }
    let mut parts = uri.trim_end_matches('/').rsplit('/');
    let mut last = parts.next().unwrap_or_default();
    if last.len() == 16 && last.ends_with('Z') && last.starts_with("20") {
        last = parts.next().unwrap_or_default();
    }
    matches!(last.trim_end_matches(".list"), "debian" | "debian-security")
}

/// Suites that hold stable packages.
fn usable_suites<'a>(suites: impl Iterator<Item = &'a str>) -> Vec<String> {
    suites
        .filter(|s| !s.contains("-backports") && !s.ends_with("-proposed-updates") && !s.ends_with('/'))
        .filter(|s| *s != "experimental" && *s != "rc-buggy")
        .map(str::to_owned)
        .collect()
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut out = Vec::new();
    for paragraph in text.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in paragraph.lines().filter(|l| !l.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some(f) = fields.last_mut() {
                    f.1.push(' ');
                    f.1.push_str(line.trim());
                }
            } else if let Some((k, v)) = line.split_once(':') {
                fields.push((k.trim().to_ascii_lowercase(), v.trim().to_owned()));
            }
        }
        let get = |k: &str| fields.iter().find(|f| f.0 == k).map_or("", |f| f.1.as_str());
        let has = |k: &str, w: &str| get(k).split_whitespace().any(|x| x == w);
        let signer = get("signed-by");
        if !has("types", "deb")
            || get("enabled").eq_ignore_ascii_case("no")
            || !has("components", "main")
            || !(signer.is_empty() || signer.contains("debian-archive"))
        {
            continue;
        }
        let suites = usable_suites(get("suites").split_whitespace());
        if suites.is_empty() {
            continue;
        }
        for uri in get("uris").split_whitespace().filter(|u| is_debian(u)) {
            out.push(Source { uri: uri.to_owned(), suites: suites.clone() });
        }
    }
    out
}

fn parse_list(text: &str) -> Vec<Source> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else { continue };
        let mut rest = rest.trim_start();
        if let Some(options) = rest.strip_prefix('[') {
            let Some((options, after)) = options.split_once(']') else { continue };
            if options.contains("signed-by=") && !options.contains("debian-archive") {
                continue;
            }
            rest = after;
        }
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let suites = usable_suites(std::iter::once(suite));
        if is_debian(uri) && !suites.is_empty() && words.any(|w| w == "main") {
            out.push(Source { uri: uri.to_owned(), suites });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(uri: &str, suites: &[&str]) -> Source {
        Source { uri: uri.to_owned(), suites: suites.iter().map(|s| (*s).to_owned()).collect() }
    }

    #[test]
    fn deb822_keeps_debian_alone() {
        let text = "\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm
  bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://vendor.example/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Enabled: no
Types: deb
URIs: http://mirror.example/debian
Suites: sid
Components: main
";
        assert_eq!(
            parse_deb822(text),
            [s("http://mirror.example/debian/", &["bookworm", "bookworm-updates"])]
        );
    }

    #[test]
    fn one_line_form() {
        let text = "\
deb http://mirror.example/debian trixie main # the base
deb-src http://mirror.example/debian trixie main
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] http://vendor.example/linux/debian trixie main
deb http://vendor.example/debian/12/prod bookworm main
deb mirror+file:/etc/apt/mirrors/debian-security.list trixie-security main
deb http://snap.example/archive/debian/20250520T000000Z trixie main
deb http://mirror.example/ubuntu noble main
deb cdrom:[Debian]/ trixie main
deb [broken";
        assert_eq!(
            parse_list(text),
            [
                s("http://mirror.example/debian", &["trixie"]),
                s("mirror+file:/etc/apt/mirrors/debian-security.list", &["trixie-security"]),
                s("http://snap.example/archive/debian/20250520T000000Z", &["trixie"]),
            ]
        );
    }
}
