//! Which gateways and scenes accept new orders at present, and their amount limits.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::money::Money;
use crate::payment_method::{PaymentMethod, Scene};

/// The settings of one gateway that a person can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodRules {
    /// Whether the gateway accepts new orders at all.
    pub enabled: bool,
    /// The scenes that accept no orders, whatever the accounts offer.
    pub disabled_scenes: Vec<Scene>,
    /// The smallest order.
    pub min_amount: Money,
    /// The largest order.
    pub max_amount: Money,
}

/// The rules of one gateway, and who set them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodConfig {
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// The rules.
    pub rules: MethodRules,
    /// Increases with each change.
    pub version: i64,
    /// Who changed them last.
    pub updated_by: String,
    /// When they last changed, by our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// The rules of all gateways, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentConfig {
    /// One entry for each gateway.
    pub methods: Vec<MethodConfig>,
}

/// The reason why an order cannot be placed at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// The whole gateway is switched off.
    #[error("{0} takes no new orders at the moment")]
    Method(PaymentMethod),
    /// This scene of the gateway is switched off.
    #[error("the scene {0} takes no new orders at the moment")]
    Scene(Scene),
    /// Too little, or too much.
    #[error("an order has {min} to {max} yuan at the moment")]
    Amount {
        /// The smallest order.
        min: Money,
        /// The largest order.
        max: Money,
    },
}

impl MethodRules {
    /// Whether a buyer may choose this scene.
    pub fn offers(&self, scene: Scene) -> bool {
        self.enabled && !self.disabled_scenes.contains(&scene)
    }
}

impl PaymentConfig {
    /// Increases with each change of any gateway: the sum of versions that only increase, read at one moment.
    pub fn version(&self) -> i64 {
        self.methods.iter().map(|method| method.version).sum()
    }

    /// The rules of one gateway. A gateway without rules accepts no orders.
    pub fn rules(&self, method: PaymentMethod) -> Option<&MethodRules> {
        self.methods.iter().find(|config| config.payment_method == method).map(|config| &config.rules)
    }

    /// Whether these rules allow a new order.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub fn check(&self, method: PaymentMethod, scene: Scene, amount: Money) -> Result<(), NotOffered> {
        let rules = self.rules(method).filter(|rules| rules.enabled).ok_or(NotOffered::Method(method))?;
        if !rules.offers(scene) {
            return Err(NotOffered::Scene(scene));
        }
        let (min, max) = (rules.min_amount, rules.max_amount);
        if (min..=max).contains(&amount) { Ok(()) } else { Err(NotOffered::Amount { min, max }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rules: MethodRules) -> PaymentConfig {
        let (updated_by, updated_at) = ("a1".to_owned(), OffsetDateTime::UNIX_EPOCH);
        let alipay = MethodConfig { payment_method: PaymentMethod::Alipay, rules, version: 3, updated_by, updated_at };
        PaymentConfig { methods: vec![alipay] }
    }

    #[test]
    fn each_rule_refuses_what_it_is_about() {
        let fen = |fen| Money::from_fen(fen).unwrap();
        let (min_amount, max_amount) = (fen(100), fen(200));
        let rules = MethodRules { enabled: true, disabled_scenes: vec![Scene::Qr], min_amount, max_amount };
        let check = |config: &PaymentConfig, scene, amount| config.check(PaymentMethod::Alipay, scene, fen(amount));

        let on = config(rules.clone());
        let range = NotOffered::Amount { min: min_amount, max: max_amount };
        assert_eq!(check(&on, Scene::Page, 100), Ok(()));
        assert_eq!(check(&on, Scene::Page, 200), Ok(()));
        assert_eq!(check(&on, Scene::Page, 99), Err(range));
        assert_eq!(check(&on, Scene::Page, 201), Err(range));
        assert_eq!(check(&on, Scene::Qr, 99), Err(NotOffered::Scene(Scene::Qr)));
        let off = config(MethodRules { enabled: false, ..rules });
        assert_eq!(check(&off, Scene::Qr, 99), Err(NotOffered::Method(PaymentMethod::Alipay)));
        let unknown = on.check(PaymentMethod::Wechat, Scene::Native, fen(150));
        assert_eq!(unknown, Err(NotOffered::Method(PaymentMethod::Wechat)));
    }
}
