//! The gateways change the keys that they sign with.

use serde_json::{Value, json};

use crate::world::World;

const CERTIFICATES: &str = "/v3/certificates";

#[tokio::test]
async fn certificates_come_and_go_on_the_list() {
    let world = World::content().await;
    let none = world.wechat("GET", CERTIFICATES, None).await;
    assert_eq!((none.status, &none.json()["code"]), (404, &json!("RESOURCE_NOT_EXISTS")));

    let made = world.control("POST", "/sim/keys/wechat/main/certificates", &json!({ "until_days": 30 })).await;
    let serial = made["serial"].as_str().unwrap();
    assert_eq!(serial.len(), 40);
    let list = world.wechat("GET", CERTIFICATES, None).await.json();
    let listed: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|entry| &entry["serial_no"]).collect();
    assert_eq!(listed, [serial]);
    assert_eq!(list["data"][0]["encrypt_certificate"]["associated_data"], "certificate");

    let signs = world.control("PUT", "/sim/keys/wechat/main", &json!({ "public_key_share": 0 })).await;
    assert_eq!(signs["certificates"][0]["serial"], serial);
    let bad = world.send("PUT", "/sim/keys/wechat/main", &[], br#"{"public_key_share":1.5}"#.to_vec()).await;
    assert_eq!(bad.status, 400);

    world.control("DELETE", &format!("/sim/keys/wechat/main/certificates/{serial}"), &json!({})).await;
    assert_eq!(world.wechat("GET", CERTIFICATES, None).await.status, 404);
}

#[tokio::test]
async fn certificate_mode_wants_both_numbers_and_the_right_ones() {
    let world = World::content().await;
    let mode = world.keys.alipay[0].certificates.as_ref().unwrap();
    let (app, root) = (mode.app_sn.as_str(), mode.authority.sn.as_str());
    let request = async |app: Option<&str>, root: Option<&str>| {
        let content = json!({ "out_trade_no": "NONE01" });
        let mut params = world.alipay_params("alipay.trade.query", &content);
        params.extend(app.map(|sn| ("app_cert_sn".to_owned(), sn.to_owned())));
        params.extend(root.map(|sn| ("alipay_root_cert_sn".to_owned(), sn.to_owned())));
        world.sign_alipay(&mut params);
        let target = format!(
            "/gateway.do?{}",
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish()
        );
        world.send("POST", &target, &[], vec![]).await.json()
    };
    let code = |answer: &Value| answer["alipay_trade_query_response"]["sub_code"].as_str().unwrap().to_owned();
    let right = request(Some(app), Some(root)).await;
    assert_eq!((code(&right).as_str(), &right["alipay_cert_sn"]), ("ACQ.TRADE_NOT_EXIST", &json!(mode.current().sn)));
    assert_eq!(request(None, None).await["alipay_cert_sn"], Value::Null);
    for (app, root, expected) in [
        (Some(app), None, "isv.missing-root-cert-sn"),
        (None, Some(root), "isv.missing-app-cert-sn"),
        (Some(root), Some(root), "isv.invalid-app-cert-sn"),
        (Some(app), Some(app), "isv.invalid-root-cert-sn"),
    ] {
        assert_eq!(code(&request(app, root).await), expected);
    }
}
