//! A small disk for the database of private servers, which a test can fill.
//!
//! It is a tmpfs in its own mount namespace. No other process sees it, and it disappears together with the processes in
//! that namespace. Mounting needs root, or a kernel that lets users create namespaces, as Debian's does.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;

use crate::servers::PrivateServers;

/// Moves the folder `$1` to a tmpfs of `$2` MiB, prints `mounted`, and keeps the mount until its stdin is closed.
const HOLD: &str = r#"set -e
mkdir "$1.disk" && mount -t tmpfs -o "size=$2m" tmpfs "$1.disk"
cp -a "$1/." "$1.disk/" && mount --move "$1.disk" "$1" && rmdir "$1.disk"
echo mounted && exec cat > /dev/null"#;
/// The size of one write that fills the disk.
const PIECE: usize = 64 * 1024;

/// The disk under the data of a PostgreSQL.
pub struct SmallDisk {
    holder: Child,
    ballast: PathBuf,
    log: PathBuf,
}

impl SmallDisk {
    /// Moves the data of these servers' PostgreSQL to a disk of `mib` MiB. PostgreSQL restarts.
    ///
    /// # Panics
    /// When this user may not mount, or when the server runs in a container.
    pub async fn under(servers: &PrivateServers, mib: u32) -> SmallDisk {
        let home = servers.dir().join("postgres");
        assert!(home.is_dir(), "this takes a PostgreSQL that runs on this machine: {} is no folder", home.display());
        servers.server("stop", "postgres").await;
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", HOLD, "sh"]);
        command.arg(&home).arg(mib.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare can be run");
        let mut said = String::new();
        let output = holder.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut said).expect("its output can be read");
        assert_eq!(said, "mounted\n", "mounting is not allowed here: run this as root or where users may mount");
        let ballast = PathBuf::from(format!("/proc/{}/root{}/ballast", holder.id(), home.display()));
        let disk = SmallDisk { holder, ballast, log: servers.dir().join("logs/postgres.log") };
        disk.start(servers).await;
        disk
    }

    /// Starts PostgreSQL on this disk, unless it runs already.
    pub async fn start(&self, servers: &PrivateServers) {
        let mut command = Command::new("nsenter");
        let of_holder = |kind: &str| format!("/proc/{}/ns/{kind}", self.holder.id());
        if !geteuid().is_root() {
            command.arg(format!("--user={}", of_holder("user"))).arg("--preserve-credentials");
        }
        command.arg(format!("--mount={}", of_holder("mnt"))).arg("--");
        servers.in_place(command, &["server", "start", "postgres"]).await;
    }

    /// Uses every free byte.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(&self.ballast).expect("the disk can be reached");
        let mut size = PIECE;
        while size > 0 {
            match file.write(&vec![b'x'; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 2,
                Err(error) => panic!("{}: {error}", self.ballast.display()),
            }
        }
    }

    /// Frees what [`fill`](SmallDisk::fill) has used.
    pub fn free(&self) {
        fs::remove_file(&self.ballast).expect("the ballast can be removed");
    }

    /// How many times this text occurs in PostgreSQL's log.
    #[must_use]
    pub fn server_said(&self, what: &str) -> usize {
        said(&self.log, what)
    }
}

fn said(log: &Path, what: &str) -> usize {
    let text = fs::read(log).expect("the log of PostgreSQL");
    String::from_utf8_lossy(&text).matches(what).count()
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
