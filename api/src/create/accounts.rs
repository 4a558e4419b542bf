//! The merchant's accounts, as the ingress uses them.

use std::sync::Arc;

use domain::{AccountName, PaymentMethod, Scene};
use gateway::{Gateway, Gateways, NoAccount};

/// The accounts of `gateways.toml`. This is a trait so that a test can replace them with its own gateway.
pub trait Accounts: Send + Sync {
    /// See [`Gateways::get`].
    fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>>;

    /// See [`Gateways::for_new_order`].
    ///
    /// # Errors
    /// See [`NoAccount`].
    fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount>;

    /// See [`Gateways::is_production`].
    fn is_production(&self, method: PaymentMethod, account: &AccountName) -> bool;

    /// See [`Gateways::are_simulated`].
    fn are_simulated(&self) -> bool;

    /// See [`Gateways::scenes`].
    fn scenes(&self, method: PaymentMethod) -> Vec<Scene>;
}

impl Accounts for Gateways {
    fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>> {
        Gateways::get(self, method, account)
    }

    fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount> {
        Gateways::for_new_order(self, method, scene, account)
    }

    fn is_production(&self, method: PaymentMethod, account: &AccountName) -> bool {
        Gateways::is_production(self, method, account)
    }

    fn are_simulated(&self) -> bool {
        Gateways::are_simulated(self)
    }

    fn scenes(&self, method: PaymentMethod) -> Vec<Scene> {
        Gateways::scenes(self, method)
    }
}
