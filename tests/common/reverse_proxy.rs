//! Common proxies with TLS in front of a program, set up as `docs/proxies.md` says.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::authority::Authority;
use super::{code_block, wait_for};

/// The name in the recipes. The tests resolve it to this machine.
pub const NAME: &str = "likes.example.org";

/// A proxy with a configuration, and how to run it.
#[derive(Clone, Copy)]
pub enum Kind {
    Nginx,
    Caddy,
    Haproxy,
}

impl Kind {
    /// Returns the name of the program, which is also the name of Debian's package.
    pub fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
            Self::Haproxy => "haproxy",
        }
    }

    /// Returns its recipe in the documentation, after this heading.
    pub fn recipe(self, heading: &str) -> String {
        let language = match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddyfile",
            Self::Haproxy => "haproxy",
        };
        code_block(include_str!("../../docs/proxies.md"), heading, language).to_owned() + "\n"
    }

    /// Completes the recipe for a machine that has nothing else, with the paths of this test's files.
    fn configuration(self, recipe: &str, dir: &Path, port: u16) -> String {
        let dir = dir.display();
        match self {
            Self::Nginx => format!(
                "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
                 client_body_temp_path {dir}/body;\nproxy_temp_path {dir}/proxy;\nfastcgi_temp_path {dir}/f;\n\
                 uwsgi_temp_path {dir}/u;\nscgi_temp_path {dir}/s;\n{recipe}\n}}\n"
            ),
            Self::Caddy => {
                let site = format!("https://{NAME}:{port} {{\ntls {dir}/chain.pem {dir}/key.pem");
                let recipe = recipe.replace(&format!("{NAME} {{"), &site);
                format!("{{\nadmin off\nauto_https disable_redirects\n}}\n{recipe}")
            }
            Self::Haproxy => recipe.to_owned(),
        }
    }

    fn command(self, file: &Path) -> Command {
        // Debian installs servers in directories that are only on root's PATH by default.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(self.program());
        command.env("PATH", path).env("HOME", file.parent().expect("its directory"));
        match self {
            Self::Nginx => command.arg("-c").arg(file).arg("-p").arg(file.parent().expect("its directory")),
            Self::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file),
            Self::Haproxy => command.arg("-db").arg("-f").arg(file),
        };
        command
    }
}

/// A running proxy.
pub struct ReverseProxy {
    kind: Kind,
    pub authority: Authority,
    dir: TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl ReverseProxy {
    /// Runs the recipe, changed by `change`, in front of what listens on `hub`.
    pub fn start(kind: Kind, hub: &str, change: impl Fn(String) -> String) -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (chain, key) = authority.sign_as_files(NAME);
        let file = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        file("chain.pem", &chain);
        file("key.pem", &key);
        // HAProxy wants both in one file.
        file("both.pem", &format!("{chain}{key}"));
        let at = |name: &str| dir.path().join(name).display().to_string();
        let port = free_port();
        let certificate = if matches!(kind, Kind::Haproxy) { at("both.pem") } else { at("chain.pem") };
        let recipe = change(kind.recipe("# Behind a proxy"))
            .replace("127.0.0.1:3000", hub.trim_start_matches("http://").trim_start_matches("unix:"))
            .replace("/run/likewise/socket", hub.trim_start_matches("unix:"))
            .replace("listen 443", &format!("listen 127.0.0.1:{port}"))
            .replace("bind :443", &format!("bind 127.0.0.1:{port}"))
            .replace("/etc/ssl/likes.example.org.pem", &certificate)
            .replace("/etc/ssl/likes.example.org.key", &at("key.pem"));
        file("configuration", &kind.configuration(&recipe, dir.path(), port));
        let mut proxy = Self { kind, authority, dir, port, child: None };
        proxy.restart();
        proxy
    }

    /// Stops it if it runs, and starts it again on the same port.
    pub fn restart(&mut self) {
        self.stop();
        let program = self.kind.program();
        let output = fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = self.kind.command(&self.dir.path().join("configuration"));
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("cannot run {program} ({error}); on Debian: apt-get install --no-install-recommends {program}")
        }));
        let port = self.port;
        wait_for(&format!("{program} on port {port}"), || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The address that a browser shows.
    pub fn origin(&self) -> String {
        format!("https://{NAME}:{}", self.port)
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("---- {}:\n{}", self.kind.program(), fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
