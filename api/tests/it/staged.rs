//! The accounts of a test's ingress.

use std::sync::Arc;

use domain::{AccountName, PaymentMethod, Scene};
use gateway::{Gateway, NoAccount};
use payment_api::create::accounts::Accounts;

use crate::world::{GATEWAYS, Puppet};

/// The accounts of the fixture, with a puppet for WeChat Pay's prepay.
pub struct Staged {
    pub wechat: Arc<Puppet>,
    pub is_production: bool,
}

impl Accounts for Staged {
    fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>> {
        let real = GATEWAYS.get(method, account)?;
        match method {
            PaymentMethod::Alipay => Some(real),
            PaymentMethod::Wechat => Some(self.wechat.clone()),
        }
    }

    fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount> {
        let real = GATEWAYS.for_new_order(method, scene, account)?;
        match method {
            PaymentMethod::Alipay => Ok(real),
            PaymentMethod::Wechat => Ok(self.wechat.clone()),
        }
    }

    fn is_production(&self, _: PaymentMethod, _: &AccountName) -> bool {
        self.is_production
    }

    fn are_simulated(&self) -> bool {
        !self.is_production
    }

    fn scenes(&self, method: PaymentMethod) -> Vec<Scene> {
        GATEWAYS.scenes(method)
    }
}
