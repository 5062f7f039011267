//! What RAM the host maps by large pages: a guest's random accesses miss the host's TLB far less often then.

use crate::raw::Backing;
use std::fs;

/// Where Linux says what it does about large pages (kernel documentation, "Transparent Hugepage Support").
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// A memfd, unless the host gives large pages to private memory alone, as it does by default.
pub(crate) fn best_backing() -> Backing {
    let read = |name| fs::read_to_string(format!("{SETTINGS}/{name}")).unwrap_or_default();
    choose(&read("enabled"), &read("shmem_enabled"))
}

fn choose(private: &str, file: &str) -> Backing {
    let gives = |setting: &str, words: &[&str]| words.iter().any(|w| setting.contains(&format!("[{w}]")));
    let to_file = gives(file, &["always", "within_size", "advise", "force"]);
    if gives(private, &["always", "madvise"]) && !to_file { Backing::Private } else { Backing::File }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_where_that_alone_has_large_pages() {
        let never = "always within_size advise [never] deny force";
        let advise = "always within_size [advise] never deny force";
        assert_eq!(choose("always [madvise] never", never), Backing::Private);
        assert_eq!(choose("[always] madvise never", ""), Backing::Private);
        assert_eq!(choose("always [madvise] never", advise), Backing::File);
        assert_eq!(choose("always madvise [never]", never), Backing::File);
        assert_eq!(choose("", ""), Backing::File);
    }
}
