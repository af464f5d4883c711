//! The program from outside: exit codes, messages, the life of a daemon, and what it answers.
//!
//! Invariant: each test has a run directory of its own and ends only the processes that it started. Waits are on a
//! line, a connection or the end of a process, never on a time.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};
use tempfile::TempDir;

const TWO_GUESTS: &str = r#"
[networks.lan]
mtu = 1500
[guests.web]
ports = [{ network = "lan", mac = "02:00:00:00:00:01" }]
[guests.db]
ports = [{ network = "lan", vlan = 7 }]
"#;

/// A directory with a file in it whose run directory is beside it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(networks: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let host = format!("[host]\nname = \"hv1\"\nrun_dir = \"{root}/run\"\nstate_dir = \"{root}/state\"\n");
        fs::write(dir.path().join("trunkline.toml"), host + networks).unwrap();
        Place { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("trunkline.toml")
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("run/control.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        let ended = self.run(&[args, &["--json"]].concat());
        assert_eq!(ended.code, 0, "{}", ended.err);
        serde_json::from_str(&ended.out).unwrap()
    }

    /// Starts `up` and waits for the line `ready`.
    fn up(&self, args: &[&str]) -> Daemon {
        let log = self.dir.path().join("log");
        let mut command = self.command(&[&["up"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let daemon = Daemon(child);
        assert_eq!(line, "ready\n", "{}", fs::read_to_string(log).unwrap());
        daemon
    }
}

/// What a command left.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running daemon; killed when dropped.
struct Daemon(Child);

impl Daemon {
    /// Sends a signal, and gives the exit code.
    fn end(mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.0.id())]).status().unwrap();
        assert!(sent.success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn check_explains_a_right_file() {
    let place = Place::new(TWO_GUESTS);
    let ended = place.run(&["check"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    for part in ["host hv1", "network lan: isolated, MTU 1500, 2 ports", "web-0.sock", "access 7", "02:00:00:00:00:01"]
    {
        assert!(ended.out.contains(part), "{part} is not in\n{}", ended.out);
    }
    assert!(ended.out.contains("`up` will make: 1 switch, 2 vhost-user sockets, the control socket"), "{}", ended.out);
    let value = place.json(&["check"]);
    assert_eq!(value["ok"], json!(true));
    assert_eq!(value["config"]["ports"][1]["vlan"], json!(7));
    assert_eq!(value["config"]["ports"][0]["attach"], json!("vhost-user"));
    assert!(!place.dir.path().join("run").exists(), "check changes nothing");
}

#[test]
fn check_says_whom_a_network_is_stretched_to() {
    let cases = [
        ("peers = [\"192.0.2.2\", \"192.0.2.3\"]", "192.0.2.2, 192.0.2.3"),
        ("group = \"239.1.1.1\"", "239.1.1.1"),
        ("peers = [\"192.0.2.2\"], anyone = true", "192.0.2.2, and anyone who is heard"),
        ("suppress = true", "nobody"),
    ];
    for (keys, whom) in cases {
        let place = Place::new(&format!("[networks.t]\noverlay = {{ vni = 7, local = \"192.0.2.1\", {keys} }}\n"));
        let said = place.run(&["check"]).out;
        assert!(said.contains(&format!("  stretched by 192.0.2.1:4789 to {whom}\n")), "{said}");
        let from = if keys.contains("peers") { "narrowest way" } else { "interface that has the endpoint's address" };
        assert!(said.contains(&format!("  MTU: that of the {from}")) && said.contains("less 50;"), "{said}");
        assert_eq!(said.contains("note: network t: it reaches no other host"), whom == "nobody", "{said}");
    }
}

#[test]
fn check_says_which_vlans_stay_on_this_host() {
    let cases = [
        ("", "vlan = 100", Some("VLAN 100;")),
        ("", "trunk = [100, 200]", Some("VLANs 100, 200;")),
        ("vlan_vni = { 100 = 7001 }\n", "trunk = [100, 200], native = 1", Some("VLAN 200;")),
        ("vlan_vni = { 100 = 7001, 200 = 7002 }\n", "trunk = [100, 200]", None),
        ("", "isolated = true", None),
    ];
    for (vlans, port, stay) in cases {
        let network = "[networks.t]\noverlay = { vni = 7, local = \"192.0.2.1\", peers = [\"192.0.2.2\"] }\n";
        let text = format!("{network}{vlans}[guests.g]\nports = [{{ network = \"t\", {port} }}]\n");
        let told = Place::new(&text).run(&["check"]).out;
        let note = told.lines().find_map(|line| line.strip_prefix("note: network t: on this host alone: "));
        assert_eq!(note.is_some(), stay.is_some(), "{text}{told}");
        assert!(note.zip(stay).is_none_or(|(note, stay)| note.starts_with(stay)), "{text}{told}");
    }
}

#[test]
fn check_says_of_which_class_the_packets_of_a_tunnel_are() {
    for (key, said) in [("dscp = 46", Some("46")), ("dscp = \"copy\"", Some("that of the inner packet")), ("", None)] {
        let vtep = format!("[vteps.main]\nlocal = \"192.0.2.1\"\n{key}\n");
        let network = "[networks.t]\noverlay = { vni = 7, vtep = \"main\", peers = [\"192.0.2.2\"] }\n";
        let told = Place::new(&(vtep + network)).run(&["check"]).out;
        let line = told.lines().find_map(|line| line.strip_prefix("  dscp "));
        assert_eq!(line.is_some(), said.is_some(), "{told}");
        assert!(line.zip(said).is_none_or(|(line, said)| line.trim().starts_with(said)), "{told}");
    }
}

#[test]
fn check_points_at_the_line_of_a_wrong_file() {
    let place = Place::new("[networks.lan]\nmtuu = 1500\n");
    let ended = place.run(&["check", "trunkline.toml"]);
    assert_eq!((ended.code, ended.out.as_str()), (2, ""));
    let wanted = "error: trunkline.toml:6:1: networks.lan.mtuu: unknown key `mtuu`; the nearest known key is `mtu`\n  |\n\
                  6 | mtuu = 1500\n  | ^^^^\n";
    assert!(ended.err.starts_with(wanted), "{}", ended.err);
    let ended = place.run(&["check", "--json"]);
    let value: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &value["ok"], &value["error"]["line"]), (2, &json!(false), &json!(6)));
    assert_eq!(value["error"]["key"], json!("networks.lan.mtuu"));
}

#[test]
fn up_starts_nothing_from_a_wrong_file() {
    for networks in ["[networks.lan]\nmode = \"natt\"\n", "[guests.g]\nports = [{}]\n", "["] {
        let place = Place::new(networks);
        let ended = place.run(&["up"]);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{}", ended.err);
        assert!(ended.err.contains("trunkline.toml:"), "{}", ended.err);
        assert!(!place.dir.path().join("run").exists());
    }
}

#[test]
fn files_that_cannot_be_read() {
    let place = Place::new("");
    let ended = place.run(&["check", "none.toml"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("none.toml") && ended.err.contains("check the path"), "{}", ended.err);
    assert_eq!(place.run(&["up", "/"]).code, 2);
    assert_eq!(place.run(&["status", "--config", "none.toml"]).code, 2);
    fs::write(place.file(), [0xff, 0xfe]).unwrap();
    assert!(place.run(&["check"]).err.contains("not UTF-8"));
}

#[test]
fn a_daemon_answers_and_ends() {
    let place = Place::new(TWO_GUESTS);
    let daemon = place.up(&[]);

    let status = place.json(&["status"]);
    assert_eq!((&status["host"], &status["workers"][0]["cpu"]), (&json!("hv1"), &Value::Null));
    assert!(status["uptime_s"].is_u64() && status["workers"][0]["busy_cycles"].is_u64());
    let descriptors = |what: &str| status["descriptors"][what].as_u64().unwrap();
    assert!(descriptors("open") > 3 && descriptors("limit") >= descriptors("open"), "{status}");
    let ports = place.json(&["show", "ports"]);
    assert_eq!(status["ports"], ports);
    let web = &ports[0];
    let names = [
        "name",
        "network",
        "guest",
        "attach",
        "state",
        "reason",
        "rx_frames",
        "rx_bytes",
        "tx_frames",
        "tx_bytes",
        "drops",
    ];
    assert!(names.iter().all(|name| web.get(name).is_some()), "{web}");
    let fields = (&web["name"], &web["network"], &web["guest"], &web["attach"], &web["state"]);
    assert_eq!(fields, (&json!("web/0"), &json!("lan"), &json!("web"), &json!("vhost-user"), &json!("waiting")));
    let networks = place.json(&["show", "networks"]);
    assert_eq!((&networks[0]["mode"], &networks[0]["mtu"]), (&json!("isolated"), &json!(1500)));
    assert_eq!(networks[0]["ports"], json!(["web/0", "db/0"]));
    assert_eq!((place.json(&["show", "fdb"]), place.json(&["show", "drops"])), (json!([]), json!([])));

    let table = place.run(&["show", "ports"]).out;
    assert!(table.starts_with("PORT   NETWORK  GUEST") && table.contains("web/0  lan      web"), "{table}");
    assert!(place.run(&["status"]).out.starts_with("trunkline on hv1, running for "));
    assert_eq!(place.run(&["show", "drops"]).out, "no drops\n");

    assert_eq!(daemon.end("TERM"), Some(0));
    assert!(!place.control().exists());
    let ended = place.run(&["status"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains(&place.control().display().to_string()), "{}", ended.err);
    assert!(ended.err.contains("start one with `trunkline up FILE`"), "{}", ended.err);
}

#[test]
fn static_addresses_are_known_from_the_start() {
    let stations = "fdb = [\"02:00:00:00:00:31\", { mac = \"02:00:00:00:00:32\", vlan = 8 }]";
    let place = Place::new(&TWO_GUESTS.replace("vlan = 7", &format!("trunk = [7, 8], native = 7, {stations}")));
    let explained = place.run(&["check"]).out;
    assert!(explained.contains("2 static addresses"), "{explained}");
    let _daemon = place.up(&[]);
    let station = |mac: &str, vlan: u16| json!({ "network": "lan", "vlan": vlan, "mac": mac, "port": "db/0", "age_s": 0, "static": true });
    let wanted = json!([station("02:00:00:00:00:31", 7), station("02:00:00:00:00:32", 8)]);
    assert_eq!(place.json(&["show", "fdb"]), wanted);
}

#[test]
fn a_second_daemon_on_the_same_run_dir_refuses() {
    let place = Place::new(TWO_GUESTS);
    let daemon = place.up(&[]);
    let ended = place.run(&["up"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.contains(&format!("another trunkline (process {})", daemon.0.id())), "{}", ended.err);
    assert_eq!(place.json(&["status"])["host"], json!("hv1"), "the first one lives on");
    assert_eq!(daemon.end("INT"), Some(0));
}

#[test]
fn a_killed_daemon_leaves_nothing_that_stops_the_next() {
    let place = Place::new(TWO_GUESTS);
    for _ in 0..3 {
        let daemon = place.up(&[]);
        assert_eq!(daemon.end("KILL"), None);
        assert!(place.control().exists(), "the socket of a killed daemon stays");
        assert!(place.run(&["status"]).err.contains("no daemon answers"));
    }
    let daemon = place.up(&[]);
    assert_eq!(place.json(&["status"])["host"], json!("hv1"));
    assert_eq!(daemon.end("TERM"), Some(0));
}

#[test]
fn the_control_socket_has_its_mode_and_can_be_elsewhere() {
    let place = Place::new("[networks.lan]\n");
    let text = fs::read_to_string(place.file()).unwrap().replace("name =", "socket_mode = \"0600\"\nname =");
    fs::write(place.file(), text).unwrap();
    let daemon = place.up(&["--socket", "c.sock"]);
    let socket = place.dir.path().join("c.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.json(&["status", "--socket", "c.sock"])["ports"], json!([]));
    assert_eq!(place.run(&["show", "ports", "--socket", "c.sock"]).out, "no ports: no guest in the file has any\n");
    assert_eq!(place.run(&["status"]).code, 1, "nobody is at the default place");
    assert_eq!(daemon.end("TERM"), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_file_in_the_place_of_the_control_socket_is_kept() {
    let place = Place::new(TWO_GUESTS);
    fs::create_dir(place.dir.path().join("run")).unwrap();
    fs::write(place.control(), "precious").unwrap();
    let ended = place.run(&["up"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("is not a socket"), "{}", ended.err);
    assert_eq!(fs::read(place.control()).unwrap(), b"precious");
}

/// Sends `request` and gives all of the answer.
fn exchange(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_control_socket_answers_errors_in_json_and_survives_nonsense() {
    let place = Place::new(TWO_GUESTS);
    let _daemon = place.up(&[]);
    let control = place.control();
    let request = |line: &str| exchange(&control, &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
    let cases = [("GET /v1/nothing", "404"), ("GET /", "404"), ("POST /v1/status", "405"), ("DELETE /v1/ports", "405")];
    for (line, code) in cases {
        let answer = request(line);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")) && head.contains("application/json"), "{line}: {answer}");
        assert!(serde_json::from_str::<Value>(body).unwrap()["error"].is_string(), "{line}: {answer}");
    }
    let mut stalled = UnixStream::connect(&control).unwrap();
    stalled.write_all(b"GET /v1/sta").unwrap();
    exchange(&control, "\0\0\0 nonsense\r\n\r\n");
    assert_eq!(place.json(&["status"])["host"], json!("hv1"));
    assert!(request("GET /v1/fdb").ends_with("\r\n\r\n[]"));
}

#[test]
fn the_file_in_the_readme_is_right() {
    let readme = include_str!("../README.md");
    let text = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
    // Here [host] is there already, and there may be one CPU only.
    let place = Place::new(&text.replacen("[host]\n", "", 1).replace("worker_cpus = [1]", "worker_cpus = [0]"));
    let ended = place.run(&["check"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
}

#[test]
fn wrong_usage_ends_with_2() {
    let place = Place::new(TWO_GUESTS);
    for args in [
        &[][..],
        &["demo", "--guests", "many"],
        &["show"],
        &["show", "colours"],
        &["up", "a", "--config", "b"],
        &["check", "--bad"],
    ] {
        let ended = place.run(args);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{args:?}");
    }
    let ended = place.run(&["show", "guests"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("`show guests` is not available in this version"), "{}", ended.err);
}

#[test]
fn the_program_describes_itself() {
    let place = Place::new("");
    let version = place.run(&["--version"]);
    assert_eq!((version.code, version.out), (0, format!("trunkline {}\n", env!("CARGO_PKG_VERSION"))));
    assert!(place.run(&["--help"]).out.contains("Exit codes:"));
    assert!(place.run(&["completions", "bash"]).out.contains("_trunkline"));
    assert!(place.run(&["man"]).out.contains(".TH trunkline"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::new("");
    let mut child =
        place.command(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}
