//! `trunkline demo`, as a user runs it: every check holds, with guests in machines and with guests in threads.
//!
//! The checks themselves are the program's; here it is looked at what they tell, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

fn skip(test: &str, why: &str) {
    // One write to the real standard error, past the capture of the test runner.
    let _ = io::stderr().write_all(format!("\nSKIPPED {test}: {why}\n").as_bytes());
}

fn demo(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.arg("demo").args(args).stdin(Stdio::null()).env_remove("RUST_LOG").output().unwrap()
}

/// What is in the place for temporary things and looks like ours.
fn leftovers() -> BTreeSet<String> {
    let names =
        fs::read_dir(std::env::temp_dir()).unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("trunkline-demo-")).collect()
}

/// One at a time: guests need the processors.
static ALONE: Mutex<()> = Mutex::new(());

/// The checks of a run that ended well; nothing when this engine cannot be had here.
fn checks(test: &str, args: &[&str]) -> Option<Vec<Value>> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = leftovers();
    let output = demo(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(2) && error.contains("/dev/kvm") {
        skip(test, error.trim());
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}\n{error}"));
    let failed = |check: &&Value| check["ok"] == false && check["skipped"] == false;
    let failed: Vec<&Value> = report["checks"].as_array().unwrap().iter().filter(failed).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{error}");
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}\n{error}");
    assert_eq!(leftovers().difference(&before).count(), 0, "nothing is left behind");
    let checks = report["checks"].as_array().unwrap().clone();
    for check in &checks {
        let (ok, skipped) = (check["ok"].as_bool().unwrap(), check["skipped"].as_bool().unwrap());
        assert!(ok != skipped, "a check that was skipped did not hold: {check}");
        if skipped {
            let why = check["detail"].as_str().unwrap();
            assert!(why.len() > 20, "a skipped check says why: {check}");
            skip(&format!("{test}, {}", check["name"]), why);
        }
    }
    Some(checks)
}

#[test]
fn every_check_holds_on_machines() {
    let Some(checks) = checks("every_check_holds_on_machines", &["--engine", "machine"]) else { return };
    assert!(checks.len() >= 14, "{checks:?}");
}

#[test]
fn every_check_holds_on_threads() {
    let checks = checks("every_check_holds_on_threads", &["--engine", "thread"]).unwrap();
    assert!(checks.len() >= 14, "{checks:?}");
}

#[test]
fn a_crowd_is_answered() {
    for engine in ["machine", "thread"] {
        let args = ["--guests", "20", "--engine", engine];
        let Some(checks) = checks(&format!("a_crowd_is_answered by {engine}"), &args) else { continue };
        assert!(checks.iter().any(|check| check["detail"].as_str().unwrap().ends_with("MiB for each guest")));
    }
}

#[test]
fn people_see_a_table() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let output = demo(&["--engine", "thread", "--guests", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("guests run as threads of this process"), "{text}");
    assert!(text.contains("  2 guests boot ") && text.contains(" held, 0 failed, 0 skipped, in "), "{text}");
}

#[test]
fn numbers_that_are_out_of_bounds_are_refused() {
    for wrong in ["0", "1", "4001"] {
        let output = demo(&["--guests", wrong, "--engine", "thread"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("2 to 4000 are possible"), "{error}");
    }
}
