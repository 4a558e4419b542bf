//! A bounded run of every target: its corpus, and what chance makes of it.

use std::fs;
use std::path::Path;

use fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Inputs made from the corpus of each target.
const INPUTS: usize = 2000;
/// Bytes that mean something to some reader.
const WORDS: [&[u8]; 16] = [
    b"\0",
    b"\n",
    b"\r\n",
    b"=",
    b"&",
    b"%",
    b"%00",
    b"+",
    b"\"",
    b"{",
    b"}",
    b"null",
    b"-1",
    b"1e400",
    "支".as_bytes(),
    b"\xff\xfe",
];

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
    Insert(usize, usize),
    Splice(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (any::<usize>(), 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        1 => (any::<usize>(), 1..64usize).prop_map(|(at, length)| Change::Cut(at, length)),
        1 => (any::<usize>(), 1..64usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        2 => (any::<usize>(), 0..WORDS.len()).prop_map(|(at, word)| Change::Insert(at, word)),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

fn changed(mut input: Vec<u8>, changes: &[Change], corpus: &[Vec<u8>]) -> Vec<u8> {
    for change in changes {
        let (Change::Flip(at, _)
        | Change::Cut(at, _)
        | Change::Repeat(at, _)
        | Change::Insert(at, _)
        | Change::Splice(at, _)) = change;
        let at = at % (input.len() + 1);
        match change {
            Change::Flip(_, bits) => input.get_mut(at).into_iter().for_each(|byte| *byte ^= bits),
            Change::Cut(_, length) => drop(input.drain(at..(at + length).min(input.len()))),
            Change::Repeat(_, length) => {
                let part = input[at..(at + length).min(input.len())].to_vec();
                drop(input.splice(at..at, part));
            }
            Change::Insert(_, word) => drop(input.splice(at..at, WORDS[*word].iter().copied())),
            Change::Splice(_, other) => {
                let other = &corpus[other % corpus.len()];
                input.truncate(at);
                input.extend(&other[at.min(other.len())..]);
            }
        }
    }
    input
}

fn run(name: &str) {
    let target: &Target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let corpus: Vec<Vec<u8>> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    corpus.iter().for_each(|input| (target.run)(input));
    let mut runner = TestRunner::deterministic();
    let made = (0..corpus.len(), prop::collection::vec(change(), 1..6));
    for _ in 0..INPUTS {
        let (seed, changes) = made.new_tree(&mut runner).expect("an input").current();
        let input = changed(corpus[seed].clone(), &changes, &corpus);
        // A panic of the target is the finding; the input is what to keep.
        let shown = String::from_utf8_lossy(&input).into_owned();
        let found = std::panic::catch_unwind(|| (target.run)(&input));
        assert!(found.is_ok(), "{name} panics over {input:?}\n{shown}");
    }
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}

targets!(
    alipay_callback,
    alipay_signed,
    alipay_answer,
    wechat_callback,
    wechat_signed,
    wechat_sealed,
    wechat_certificates,
    money,
    problem
);
