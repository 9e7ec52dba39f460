//! The real binary as a child process: started on free ports, watched, ended by its own process id.
//!
//! Data directories lie under the target directory, because a temporary directory is often memory and O_DIRECT is needed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use client::{Client, ConnectOptions};

use crate::http::Connection;

/// Longest that anything here is waited for; the machine may be busy with other builds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A small store, so that segments roll and starting is quick.
pub const SMALL: [&str; 6] = [
    "--segment-bytes",
    "4MiB",
    "--segments-ahead",
    "1",
    "--memory",
    "1GiB",
];

/// A directory on a filesystem with O_DIRECT, gone when dropped. What servers say lies beside it.
pub struct Directory {
    path: PathBuf,
    _around: tempfile::TempDir,
}

impl Directory {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub fn directory() -> Directory {
    let around = tempfile::Builder::new()
        .prefix("pinion-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("the target directory can be written");
    let path = around.path().join("data");
    std::fs::create_dir(&path).expect("just made");
    Directory {
        path,
        _around: around,
    }
}

/// `serve` on free ports, under another command if there is one.
pub fn serve_under(around: &[&str], data: &Path, flags: &[&str]) -> Command {
    let data = data.to_str().expect("a UTF-8 path");
    let mut command = without_our_variables(match around {
        [] => Command::new(env!("CARGO_BIN_EXE_pinion")),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(env!("CARGO_BIN_EXE_pinion"));
            command
        }
    });
    command
        .args(["serve", "--data", data, "--port", "0", "--http-port", "0"])
        .args(flags);
    command
}

/// The binary with an environment that holds none of our variables.
pub fn pinion(arguments: &[&str]) -> Command {
    let mut command = without_our_variables(Command::new(env!("CARGO_BIN_EXE_pinion")));
    command.args(arguments);
    command
}

fn without_our_variables(mut command: Command) -> Command {
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PINION_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to its end and holds the exit code; returns standard output and standard error.
#[track_caller]
pub fn run(command: &mut Command, code: i32) -> (String, String) {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // Ended by its own id when it goes on for too long, as a server does that should have refused to start.
    let (ended, watch) = channel::<()>();
    let process = child.id().to_string();
    let watch = std::thread::spawn(move || {
        if watch
            .recv_timeout(PATIENCE)
            .is_err_and(|e| e == RecvTimeoutError::Timeout)
        {
            let _ = Command::new("kill").args(["-KILL", &process]).status();
        }
    });
    let output = child.wait_with_output().expect("our child");
    drop(ended);
    watch.join().expect("no panic");
    let (stdout, stderr) = texts(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command:?}\nstdout: {stdout}\nstderr: {stderr}"
    );
    (stdout, stderr)
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Polls until `look` finds something; the only form of waiting in these tests.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A gauge or counter in what `/metrics` said: of one shard, or the only one of its name.
#[track_caller]
pub fn metric_in(text: &str, name: &str, shard: usize) -> f64 {
    let label = format!("shard=\"{shard}\"");
    let line = text.lines().find(|line| {
        line.starts_with(name)
            && line[name.len()..].starts_with(['{', ' '])
            && (!line.contains("shard=") || line.contains(&label))
    });
    let line = line.unwrap_or_else(|| panic!("no {name} of shard {shard} in:\n{text}"));
    let value = line.rsplit(' ').next().unwrap_or_default();
    value
        .parse()
        .unwrap_or_else(|_| panic!("no number in {line}"))
}

/// A running `pinion serve`.
pub struct Server {
    child: Child,
    banner: String,
    lines: Mutex<Receiver<String>>,
    log: PathBuf,
    pub native: SocketAddr,
    pub http: SocketAddr,
}

impl Server {
    /// Starts on `data` with the small store's flags and waits until every shard takes writes.
    #[track_caller]
    pub fn start(data: &Path, shards: usize) -> Server {
        Server::start_with(data, shards, &[])
    }

    /// The same with more flags; `SMALL` ones may not be given again.
    #[track_caller]
    pub fn start_with(data: &Path, shards: usize, flags: &[&str]) -> Server {
        let shards = shards.to_string();
        let mut all = vec!["--shards", &shards];
        all.extend(SMALL);
        all.extend(flags);
        let mut server = Server::spawn(data, &all);
        server.wait_until_ready();
        server
    }

    /// Starts with exactly these flags (besides data and ports) and reads the banner; shards may still recover.
    #[track_caller]
    pub fn spawn(data: &Path, flags: &[&str]) -> Server {
        Server::spawn_under(&[], data, flags)
    }

    /// The same under a command that sets something up and then becomes what follows it (`prlimit`, `setpriv`).
    #[track_caller]
    pub fn spawn_under(around: &[&str], data: &Path, flags: &[&str]) -> Server {
        let log = data.with_extension("stderr");
        let opened = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let mut child = serve_under(around, data, flags)
            .stdout(Stdio::piped())
            .stderr(opened.expect("a file beside the data directory"))
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server {
            child,
            banner: String::new(),
            lines: Mutex::new(lines),
            log,
            native: unknown,
            http: unknown,
        };
        server.native = server.banner_address("  native ");
        server.http = server.banner_address("  http ");
        server
    }

    #[track_caller]
    fn next_line(&mut self) -> String {
        let line = self
            .lines
            .get_mut()
            .expect("no panic")
            .recv_timeout(PATIENCE);
        let Ok(line) = line else {
            let status = self.child.try_wait();
            panic!(
                "the server says nothing more ({status:?}); it said:\n{}\n{}",
                self.banner,
                self.stderr()
            );
        };
        self.banner += &line;
        self.banner.push('\n');
        line
    }

    #[track_caller]
    fn banner_address(&mut self, label: &str) -> SocketAddr {
        loop {
            if let Some(rest) = self.next_line().strip_prefix(label) {
                let address = rest.trim().split([',', ' ']).next().unwrap_or_default();
                return address
                    .parse()
                    .unwrap_or_else(|_| panic!("no address in {rest:?}"));
            }
        }
    }

    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        while !self.next_line().starts_with("pinion is serving native ") {}
    }

    pub fn banner(&self) -> &str {
        &self.banner
    }
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written to standard error, earlier runs on the directory included.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        self.client_with(ConnectOptions::default())
    }
    #[track_caller]
    pub fn client_with(&self, options: ConnectOptions) -> Client {
        Client::connect(&self.native.to_string(), options).expect("the server takes connections")
    }
    #[track_caller]
    pub fn http(&self) -> Connection {
        Connection::open(self.http)
    }

    /// Runs a client command of the binary against this server.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str], code: i32) -> (String, String) {
        run(
            pinion(arguments).args(["--to", &self.native.to_string()]),
            code,
        )
    }

    /// A gauge or counter of one shard (or the only one of its name).
    #[track_caller]
    pub fn metric(&self, name: &str, shard: usize) -> f64 {
        metric_in(&self.http().get("/metrics").text(), name, shard)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()))
            .expect("the process lives");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("Linux reports VmRSS");
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number of KiB");
        kib << 10
    }

    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("our child") {
            panic!("the server ended ({status}):\n{}", self.stderr());
        }
    }

    /// SIGTERM, and the exit status once it has drained.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the server does not end:\n{}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.process().to_string()])
            .status();
        assert!(status.expect("kill starts").success());
    }

    /// SIGTERM and exit code 0.
    #[track_caller]
    pub fn stop(mut self) {
        let status = self.terminate();
        assert_eq!(
            status.code(),
            Some(0),
            "the drain failed:\n{}",
            self.stderr()
        );
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own child only, and only where a test did not end it.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let mut tail = self.stderr();
            let cut = tail.len().saturating_sub(3000);
            eprintln!(
                "--- the server's standard error ---\n{}",
                tail.split_off(tail.ceil_char_boundary(cut))
            );
        }
    }
}
