//! The merchant accounts of `gateways.toml`, each ready to use. A file with faults is refused as a whole, and every
//! fault is reported at once with what to do about it.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use domain::{AccountName, LatePaymentPolicy, PaymentMethod, Policies, Scene};
use fields::{Context, Section};
use held::Held;
use reload::Print;
use runtime::env::{Env, PublicUrl};
use runtime::file_mode;
use url::{Host, Url};

use crate::adapter::Gateway;
use crate::alipay::Alipay;
use crate::wechat::Wechat;

mod alipay;
mod fields;
mod held;
mod published;
mod refresh;
mod reload;
#[cfg(test)]
mod reload_tests;
#[cfg(test)]
mod tests;
mod wechat;

/// One fault in `gateways.toml`, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountFault {
    /// `alipay "main"`, or the file itself.
    pub account: String,
    /// The field, as a path from the account's table; empty for the account or the file as a whole.
    pub field: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl fmt::Display for AccountFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AccountFault { account, field, problem } = self;
        if field.is_empty() { write!(f, "{account}: {problem}") } else { write!(f, "{account}: {field} {problem}") }
    }
}

impl std::error::Error for AccountFault {}

/// The error when no account accepts a new order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAccount {
    /// No account of this name at this gateway.
    #[error("no such account")]
    Unknown,
    /// The named account serves its old orders only.
    #[error("this account takes no new orders")]
    Retired,
    /// Neither the named nor any other account offers this scene.
    #[error("no account offers this scene")]
    Scene,
}

struct Entry {
    gateway: Arc<dyn Gateway>,
    /// The merchant and apps that the account stands for.
    identity: Identity,
    scenes: Vec<Scene>,
    new_orders: bool,
    late_payment: LatePaymentPolicy,
}

/// The merchant and apps that an account stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    /// The merchant's number.
    merchant: String,
    apps: BTreeSet<String>,
    environment: String,
    /// The addresses that we call: scheme, host and port of each.
    origins: BTreeSet<String>,
}

impl Identity {
    /// Whether the account takes real money.
    fn is_production(&self) -> bool {
        self.environment == "production"
    }

    /// Whether this account can continue the orders of `known`: same merchant, same environment, and every app that the
    /// orders may name.
    fn goes_on_for(&self, known: &Identity) -> bool {
        self.merchant == known.merchant && self.environment == known.environment && self.apps.is_superset(&known.apps)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apps: Vec<&str> = self.apps.iter().map(String::as_str).collect();
        write!(f, "merchant {} with {} ({})", self.merchant, apps.join(", "), self.environment)
    }
}

/// Every account, in the order of the file. All clones share one set: when one clone reloads, all clones see the
/// result.
#[derive(Clone)]
pub struct Gateways(Arc<Shared>);

struct Shared {
    path: PathBuf,
    /// The reason that no production account can work here, if there is one.
    no_production: Option<String>,
    table: RwLock<Arc<Table>>,
    /// The state of every file just before it was last read.
    prints: Mutex<Vec<Print>>,
    held: Mutex<Held>,
}

/// The accounts from one load of the file.
#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    policies: Arc<Policies>,
}

impl Gateways {
    /// Whether an account takes real money.
    pub fn has_production(&self) -> bool {
        self.table().entries.iter().any(|entry| entry.identity.is_production())
    }

    /// Whether every account is a simulator's.
    pub fn are_simulated(&self) -> bool {
        self.table().entries.iter().all(|entry| entry.identity.environment == "simulator")
    }

    /// Whether this account takes real money. An unknown account does not.
    pub fn is_production(&self, method: PaymentMethod, account: &AccountName) -> bool {
        self.table().entry(method, account).is_some_and(|entry| entry.identity.is_production())
    }

    /// Reads `GATEWAYS_FILE` and the accounts in it; each fault is added to `env`. `PUBLIC_URL`, where it is set, has to fit them.
    pub fn from_env(env: &mut Env) -> Option<Gateways> {
        let path = env.file("GATEWAYS_FILE", "name the file that describes the merchant accounts")?;
        let faults = match Gateways::load_where(&path, PublicUrl::unfit(env)) {
            Ok(gateways) => return Some(gateways),
            Err(faults) => faults,
        };
        // A fault of the file says what to do in its last words.
        for fault in faults.iter().map(ToString::to_string) {
            let (wrong, remedy) = fault.rsplit_once("; ").unwrap_or((&fault, "correct the file"));
            env.fault("GATEWAYS_FILE", wrong, remedy);
        }
        None
    }

    /// Reads the file and all keys that it names.
    ///
    /// # Errors
    /// Every fault found, at least one.
    pub fn load(path: &Path) -> Result<Gateways, Vec<AccountFault>> {
        Gateways::load_where(path, None)
    }

    /// Like [`Gateways::load`], for a process whose public address may be unfit for production. `no_production` states
    /// the reason and what to do; it applies to each later reload too.
    ///
    /// # Errors
    /// Every fault found, at least one.
    pub fn load_where(path: &Path, no_production: Option<String>) -> Result<Gateways, Vec<AccountFault>> {
        let (path, prints, held) = (path.to_owned(), Mutex::default(), Mutex::default());
        let gateways = Gateways(Arc::new(Shared { path, no_production, table: RwLock::default(), prints, held }));
        let table = gateways.read()?;
        gateways.put(table);
        Ok(gateways)
    }

    fn read(&self) -> Result<Table, Vec<AccountFault>> {
        let path = self.0.path.as_path();
        let whole =
            |problem: String| vec![AccountFault { account: path.display().to_string(), field: String::new(), problem }];
        let mut prints = vec![Print::of(path)];
        let table = std::fs::read_to_string(path)
            .map_err(|error| whole(format!("cannot be read ({error}); GATEWAYS_FILE must name a readable file")))
            .and_then(|text| text.parse().map_err(|error| whole(not_toml(&text, &error))));
        let read = table.and_then(|table| {
            let context = Context::new(path.parent().unwrap_or(Path::new("")), self.0.no_production.clone());
            let entries = read_file(Section::root(&context, path, table), &mut lock(&self.0.held));
            let unsafe_file = if context.is_real() { file_mode::check(path).err() } else { None };
            let (mut faults, files) = context.into_parts();
            faults.extend(unsafe_file.into_iter().flat_map(whole));
            prints.extend(files);
            if faults.is_empty() { Ok(Table::new(entries)) } else { Err(faults) }
        });
        *lock(&self.0.prints) = prints;
        read
    }

    fn prints(&self) -> Vec<Print> {
        lock(&self.0.prints).clone()
    }

    fn put(&self, table: Table) {
        *self.0.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn table(&self) -> Arc<Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The policy of each account for money that arrives when none is owed.
    pub fn policies(&self) -> Arc<Policies> {
        self.table().policies.clone()
    }

    /// The account that an order or a callback names, retired or not.
    pub fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>> {
        self.table().entry(method, account).map(|entry| entry.gateway.clone())
    }

    /// The named account, or the first of the file, if it takes new orders in this scene.
    ///
    /// # Errors
    /// See [`NoAccount`].
    pub fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount> {
        let table = self.table();
        let entry = match account {
            Some(account) => {
                let entry = table.entry(method, account).ok_or(NoAccount::Unknown)?;
                if !entry.new_orders {
                    return Err(NoAccount::Retired);
                }
                Some(entry).filter(|entry| entry.scenes.contains(&scene))
            }
            None => table.open(method).find(|entry| entry.scenes.contains(&scene)),
        };
        entry.map(|entry| entry.gateway.clone()).ok_or(NoAccount::Scene)
    }

    /// The scenes in which some account of this gateway takes new orders, in the gateway's order.
    pub fn scenes(&self, method: PaymentMethod) -> Vec<Scene> {
        let table = self.table();
        let offered = |scene: &Scene| table.open(method).any(|entry| entry.scenes.contains(scene));
        method.scenes().iter().copied().filter(offered).collect()
    }

    /// The identity of an account: the merchant's number, the apps, and in brackets the environment.
    pub fn identity(&self, method: PaymentMethod, account: &AccountName) -> Option<String> {
        self.table().entry(method, account).map(|entry| entry.identity.to_string())
    }

    /// Every account.
    pub fn iter(&self) -> impl Iterator<Item = Arc<dyn Gateway>> + use<> {
        let gateways: Vec<_> = self.table().entries.iter().map(|entry| entry.gateway.clone()).collect();
        gateways.into_iter()
    }
}

impl Table {
    fn new(entries: Vec<Entry>) -> Table {
        let of = |entry: &Entry| (entry.gateway.method(), entry.gateway.account().clone(), entry.late_payment);
        let policies = Arc::new(entries.iter().map(of).collect());
        Table { entries, policies }
    }

    fn open(&self, method: PaymentMethod) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.gateway.method() == method && entry.new_orders)
    }

    fn entry(&self, method: PaymentMethod, account: &AccountName) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.gateway.method() == method && entry.gateway.account() == account)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows the names of the accounts and no key.
impl fmt::Debug for Gateways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter().map(|gateway| format!("{}/{}", gateway.method(), gateway.account()));
        f.debug_list().entries(names).finish()
    }
}

fn read_file(mut root: Section<'_>, held: &mut Held) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut accounts = 0;
    for method in PaymentMethod::ALL.iter().copied() {
        let mut names = HashSet::new();
        for mut section in root.accounts(method) {
            accounts += 1;
            let head = read_head(&mut section, method, &mut names);
            section.finish();
            entries.extend(head.and_then(|head| read_keys(head, method, held)));
        }
    }
    if accounts == 0 {
        root.fault("", "names no account; add an [[alipay]] or a [[wechat]] table");
    }
    root.finish();
    entries
}

/// The fields that every account has, and the table of its environment.
struct Head<'c> {
    name: Option<AccountName>,
    scenes: Vec<Scene>,
    new_orders: bool,
    late_payment: LatePaymentPolicy,
    environment: Option<Section<'c>>,
}

fn read_head<'c>(
    section: &mut Section<'c>,
    method: PaymentMethod,
    names: &mut HashSet<AccountName>,
) -> Option<Head<'c>> {
    let name = section.parsed("account", "1 to 32 characters a-z, 0-9 and -", |text| AccountName::parse(text).ok());
    if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
        section.fault("account", "is used twice at this gateway; callbacks could not be told apart, so rename one");
    }
    let scenes = section.texts("scenes").unwrap_or_default();
    let scenes = scenes.iter().filter_map(|scene| read_scene(section, method, scene)).collect();
    let new_orders = section.flag("new_orders", true);
    let late_payment = read_late_payment(section);
    let environments: &[&str] = match method {
        PaymentMethod::Alipay => &["production", "sandbox", "simulator"],
        PaymentMethod::Wechat => &["production", "simulator"],
    };
    let picked = section.text("environment");
    let known = picked.as_deref().is_some_and(|picked| environments.contains(&picked));
    if picked.is_some() && !known {
        section.fault("environment", &format!("must be one of {}", environments.join(", ")));
    }
    let mut environment = None;
    for of in environments {
        // The tables of other environments are not read: they may name keys that this machine does not have.
        let table = section.optional_section(of);
        if picked.as_deref() == Some(of) {
            environment = table;
        }
    }
    if let Some(picked) = picked.filter(|_| known && environment.is_none()) {
        section.fault(&picked, &format!("is missing; `environment = \"{picked}\"` needs a table [{method}.{picked}]"));
    }
    Some(Head { name, scenes, new_orders, late_payment, environment })
}

/// `late_payment = "hold"` (the default), `"refund"` or `"fulfil"`: what we do with money that arrives when none is
/// owed.
fn read_late_payment(section: &mut Section<'_>) -> LatePaymentPolicy {
    const FORM: &str = "one of hold, refund, fulfil: what becomes of a late or second payment";
    let given = section.has("late_payment");
    let read = |section: &mut Section<'_>| section.parsed("late_payment", FORM, |text| text.parse().ok());
    given.then(|| read(section)).flatten().unwrap_or(LatePaymentPolicy::Hold)
}

fn read_scene(section: &Section<'_>, method: PaymentMethod, text: &str) -> Option<Scene> {
    let offered = method.scenes();
    let scene = offered.iter().copied().find(|scene| scene.as_str() == text);
    if scene.is_none() {
        let names: Vec<_> = offered.iter().map(|scene| scene.as_str()).collect();
        let problem = format!("names `{text}`, which {method} does not have; choose from {}", names.join(", "));
        section.fault("scenes", &problem);
    }
    scene
}

fn read_keys(head: Head<'_>, method: PaymentMethod, held: &mut Held) -> Option<Entry> {
    let Head { name, scenes, new_orders, late_payment, environment } = head;
    let mut environment = environment?;
    environment.judge_environment();
    // Without a valid name, check the entry under a placeholder. The fault about the name already prevents loading.
    let name = name.or_else(|| AccountName::parse("unnamed").ok())?;
    let mut origins = BTreeSet::new();
    let mut goes_to = |urls: &[Url]| origins.extend(urls.iter().map(|url| url.origin().ascii_serialization()));
    let made: Option<(Arc<dyn Gateway>, String, BTreeSet<String>)> = match method {
        PaymentMethod::Alipay => alipay::read(&mut environment, name).and_then(|account| {
            let (merchant, app) = (account.seller_id.clone(), account.app_id.clone());
            let urls = std::slice::from_ref(&account.gateway_url);
            goes_to(urls);
            let route = held.route(method, urls, &environment)?;
            // Fetched certificates were verified against these roots and this certificate, so both are part of the key.
            let believed = account.certificates().map(|it| format!("{} {}", it.root_sn, it.given.sn));
            let fetched = held.alipay(format!("{} {app} {merchant} {}", account.name, believed.unwrap_or_default()));
            let alipay = Arc::new(Alipay::new(account, route, fetched));
            Some((alipay as Arc<dyn Gateway>, merchant, BTreeSet::from([app])))
        }),
        PaymentMethod::Wechat => wechat::read(&mut environment, name, &scenes).and_then(|(account, urls)| {
            let (merchant, apps) = (account.mchid.clone(), account.apps.clone());
            goes_to(&urls);
            let route = held.route(method, &urls, &environment)?;
            let fetched = held.wechat(format!("{} {merchant}", account.name));
            Some((Arc::new(Wechat::new(account, route, fetched)) as Arc<dyn Gateway>, merchant, apps))
        }),
    };
    let environment_name = environment.name().to_owned();
    environment.finish();
    let (gateway, merchant, apps) = made?;
    let identity = Identity { merchant, apps, environment: environment_name, origins };
    Some(Entry { gateway, identity, scenes, new_orders, late_payment })
}

/// Describes why a text is not TOML. The library's full message quotes the line, which may hold a secret.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.as_bytes().get(..span.start));
    let line = before.map_or(1, |before| before.iter().filter(|byte| **byte == b'\n').count() + 1);
    format!("is not TOML: line {line}: {}; correct the line", error.message().lines().next().unwrap_or_default())
}

/// An address to call: HTTPS, or plain HTTP on this machine.
fn read_url(section: &mut Section<'_>, field: &str, default: Option<&str>) -> Option<Url> {
    let text = match (section.optional_text(field), default) {
        (Some(text), _) => text,
        (None, Some(default)) => default.to_owned(),
        (None, None) => {
            section.missing(field);
            return None;
        }
    };
    let Ok(url) = Url::parse(&text) else {
        section.fault(field, "is not a URL; write scheme, host and path, such as https://host/path");
        return None;
    };
    let loopback = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(domain)) => domain == "localhost",
        None => false,
    };
    let problem = match url.scheme() {
        "https" => None,
        "http" if loopback => None,
        "http" => Some("must begin with https:// (plain http is for a simulator on 127.0.0.1 only)"),
        _ => Some("must begin with https://"),
    };
    let extra = url.query().is_some() || url.fragment().is_some() || !url.username().is_empty();
    let problem = problem.or(extra.then_some("must have no query, no fragment and no user name"));
    if let Some(problem) = problem {
        section.fault(field, problem);
        return None;
    }
    Some(url)
}
