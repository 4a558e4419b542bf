//! Variables that are nearly one of ours. Nothing reads them, and their writer believes that something does.

use strsim::osa_distance;

/// It names every variable of the project; a test holds that.
const EXAMPLE: &str = include_str!("../../../../.env.example");
/// A shorter name is near to names of other programs.
const SHORTEST: usize = 7;
/// So many letters are wrong, missing, too many, or swapped.
const WRONG: usize = 2;

/// The variable that a name means which is none of ours. `None`: it is one, or it is far from all of them.
pub(super) fn meant(name: &str) -> Option<&'static str> {
    let bare = name.strip_suffix("_FILE").unwrap_or(name);
    if name.len() < SHORTEST || known().any(|ours| ours == name || ours == bare) {
        return None;
    }
    known().filter(|ours| osa_distance(ours, name) <= WRONG).min_by_key(|ours| osa_distance(ours, name))
}

fn known() -> impl Iterator<Item = &'static str> {
    let names = EXAMPLE.lines().filter_map(|line| line.strip_prefix("# ").unwrap_or(line).split_once('='));
    let is_name = |name: &&str| {
        name.len() >= SHORTEST
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    names.map(|(name, _)| name).filter(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_others_are_left_alone() {
        for (name, expected) in [
            ("RETURN_URL_ORIGIN", Some("RETURN_URL_ORIGINS")),
            ("REQUESTS_PER_USR", Some("REQUESTS_PER_USER")),
            ("JWT_ISUER", Some("JWT_ISSUER")),
            ("PUBLIC_ULR", Some("PUBLIC_URL")),
            ("RETURN_URL_ORIGINS", None),
            ("JWT_HS256_SECRET_FILE", None),
            ("PATH", None),
            ("LANGUAGE", None),
            ("CARGO_MANIFEST_DIR", None),
            ("SEAL_KEYRING", None),
        ] {
            assert_eq!(meant(name), expected, "{name}");
        }
        assert!(known().count() > 60);
    }
}
