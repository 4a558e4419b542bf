//! Any parameters, forms and answers: what is signed, and what is refused.

use proptest::prelude::*;

use crate::alipay::answer::open_answer;
use crate::alipay::form::Form;
use crate::alipay::sign::{string_to_sign, verify_callback};
use crate::error::CallbackError;
use crate::keys::VerifyingKey;

const PUBLIC: &str = include_str!("../../tests/fixtures/vectors/keys/alipay_app_public.pem");

fn key() -> &'static VerifyingKey {
    static KEY: std::sync::OnceLock<VerifyingKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| VerifyingKey::from_spki_pem(PUBLIC).unwrap())
}

fn verify(body: &[u8]) -> Result<(), CallbackError> {
    verify_callback(key(), &Form::parse(body)?)
}

proptest! {
    #[test]
    fn the_signed_string_does_not_depend_on_the_order_of_parameters(
        params in proptest::collection::btree_map("[a-z_]{1,8}", ".{0,8}", 0..8),
        seed in any::<u64>(),
    ) {
        let ordered: Vec<_> = params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut shuffled = ordered.clone();
        shuffled.sort_by_key(|(name, _)| name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)));
        prop_assert_eq!(string_to_sign(ordered), string_to_sign(shuffled));
    }

    #[test]
    fn a_form_decodes_what_a_form_encoder_wrote(
        fields in proptest::collection::btree_map("[a-z]{1,8}", ".{1,20}", 1..8),
    ) {
        let body: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        let form = Form::parse(body.as_bytes()).unwrap();
        for (name, value) in &fields {
            prop_assert_eq!(form.get(name), Some(value.as_str()));
        }
    }

    #[test]
    fn any_bytes_are_a_callback_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(verify(&body).is_err());
        prop_assert!(open_answer(key(), "alipay.trade.query", &body).is_err());
    }

    #[test]
    fn any_signed_looking_bytes_are_refused(sign in "[A-Za-z0-9+/=%]{0,400}", rest in "[ -~]{0,100}") {
        let body = format!("sign={sign}&sign_type=RSA2&{rest}");
        prop_assert!(verify(body.as_bytes()).is_err());
    }
}

#[test]
fn garbage_of_64_kib_is_refused_quickly() {
    for body in [vec![b'&'; 65_536], vec![b'%'; 65_536], vec![0xff; 65_536], b"a&b=c&".repeat(10_922)] {
        assert!(matches!(verify(&body), Err(CallbackError::Malformed(_))));
    }
}

#[test]
fn a_name_that_comes_twice_is_refused() {
    for body in ["a=1&b=2&a=1", "a=1&%61=2", "a&a"] {
        assert_eq!(Form::parse(body.as_bytes()).unwrap_err(), CallbackError::Malformed("a field comes twice"));
    }
}

#[test]
fn empty_parameters_and_sign_are_not_signed() {
    let params = [("sign_type", "RSA2"), ("b", ""), ("sign", "x"), ("a", "1=&2")];
    assert_eq!(string_to_sign(params), "a=1=&2&sign_type=RSA2");
}
