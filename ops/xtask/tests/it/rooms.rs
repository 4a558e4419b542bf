//! Holds by reading the source what the compiler does not: the folders of one crate may name each other as they like.

use crate::tidy::sources;

/// The rooms of the ingress from the ground up, and what each may stand on. No room may name the start.
const ROOMS: &[(&str, &[&str])] = &[
    ("answer", &[]),
    ("watch", &["answer"]),
    ("access", &["answer"]),
    ("create", &["answer"]),
    ("config", &["access"]),
    ("state", &["answer", "watch", "access", "create", "config"]),
    ("routes", &["answer", "watch", "access", "create", "state"]),
];

/// The room of a file of the ingress: the folder below `src`, or the file itself.
fn room_of(path: &str) -> &str {
    let inside = path.strip_prefix("api/src/").unwrap_or(path);
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// The rooms that a line names. A list in braces, and a way up past the own room, would hide some: they count as rooms
/// that do not exist.
fn rooms_named(line: &str) -> Vec<&str> {
    let ends = |letter: char| !letter.is_alphanumeric() && letter != '_';
    let names = line.split("crate::").skip(1).filter_map(|rest| rest.split(ends).next());
    let hidden = ["crate::{", "super::super"].into_iter().filter(|way| line.contains(way));
    names.filter(|name| !name.is_empty()).chain(hidden).collect()
}

#[test]
fn the_rooms_of_the_ingress_stand_on_each_other_one_way() {
    for (n, (room, below)) in ROOMS.iter().enumerate() {
        let is_below = |name: &&str| ROOMS[..n].iter().any(|(room, _)| room == name);
        assert!(below.iter().all(is_below), "{room} stands on what is above it");
    }
    let mut found = Vec::new();
    for (path, lines) in sources("api/src") {
        let room = room_of(&path);
        let Some((_, below)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            assert!(["lib", "main", "start"].contains(&room), "{path} is in no room");
            continue;
        };
        let is_above = |name: &&str| *name != room && !below.contains(name);
        let wrong = |line: &String| rooms_named(line).into_iter().find(is_above).map(|name| format!("{path}: {name}"));
        found.extend(lines.iter().filter_map(wrong));
    }
    assert_eq!(found, [""; 0]);
    assert_eq!(room_of("api/src/state.rs"), "state");
    assert_eq!(room_of("api/src/access/token_keys/mod.rs"), "access");
    let planted =
        "use crate::{state, routes}; fn f(app: &crate::state::App, of: crate::App, at: super::super::watch::Hub)";
    assert_eq!(rooms_named(planted), ["state", "App", "crate::{", "super::super"]);
    assert_eq!(rooms_named("pub(crate) fn f(use super::auth)"), [""; 0]);
}
