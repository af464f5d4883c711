//! `trunkline bench` from outside: what it prints, and that frames flowed and are all accounted for. Never how fast.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use serde_json::Value;
use std::process::{Command, Output, Stdio};

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.arg("bench").args(args).stdin(Stdio::null()).env_remove("RUST_LOG").output().unwrap()
}

fn json(args: &[&str]) -> Value {
    // A frame that is timed has to come back while it is measured, on processors that others use, too.
    let seconds = if args == ["latency"] { "0.3" } else { "0.05" };
    let ended = bench(&[args, &["--seconds", seconds, "--repeats", "1", "--json"]].concat());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// Frames flowed, and each was received or dropped with a reason.
fn accounted_for(rows: &Value) {
    for row in rows.as_array().unwrap() {
        let frames = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));
        assert!(frames("frames_received") > 0, "{row}");
        assert_eq!(frames("frames_sent"), frames("frames_received") + frames("frames_dropped"), "{row}");
        assert_eq!(row["frames_lost"], 0, "{row}");
        assert_eq!(row["repeats"], 1, "{row}");
    }
}

#[test]
fn rates_of_all_sizes_and_both_paths() {
    let results = json(&["rate"]);
    accounted_for(&results["rows"]);
    let rows = results["rows"].as_array().unwrap();
    let with = |name: &str, value: Value| rows.iter().filter(|row| row[name] == value).count();
    assert!([64, 128, 256, 512, 1024, 1518].iter().all(|size| with("size_bytes", Value::from(*size)) >= 2));
    assert!(with("direction", "one-way".into()) > 0 && with("direction", "both-ways".into()) > 0);
    assert!(with("path", "switch".into()) > 0 && with("path", "vlan".into()) > 0);
    assert!(rows.iter().all(|row| row["unit"] == "Mpps" && row["min"].as_f64() <= row["max"].as_f64()), "{results}");
    assert_eq!(results["latency"], Value::Array(Vec::new()));
    assert!(
        results["host"]["processor"].is_string() && results["cpus"]["worker"].is_u64() && results["notes"].is_array()
    );
}

#[test]
fn latencies_are_timed_with_one_frame_on_its_way_and_at_half_load() {
    let results = json(&["latency"]);
    accounted_for(&results["latency"]);
    let rows = results["latency"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["what"].as_str().unwrap()).collect::<Vec<_>>(),
        ["latency-idle", "latency-half", "latency-idle", "latency-half"]
    );
    for row in rows {
        let us = |name: &str| row[name].as_f64().unwrap();
        assert!(row["frames_timed"].as_u64() > Some(0), "{row}");
        let climbing = [us("p50_us"), us("p90_us"), us("p99_us"), us("p999_us"), us("max_us")];
        assert!(us("p50_us") > 0.0 && climbing.is_sorted(), "{row}");
    }
}

#[test]
fn super_frames_and_many_ports_and_addresses() {
    let throughput = json(&["throughput"]);
    accounted_for(&throughput["rows"]);
    assert!(
        throughput["rows"].as_array().unwrap().iter().all(|row| row["unit"] == "Gbit/s" && row["frames_dropped"] == 0)
    );
    let scaling = json(&["scaling"]);
    accounted_for(&scaling["rows"]);
    assert_eq!(scaling["rows"].as_array().unwrap().len(), 10);
}

#[test]
fn a_page_is_written_and_a_table_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.html");
    let ended = bench(&["loss", "--seconds", "0.02", "--repeats", "2", "--html", file.to_str().unwrap()]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let (page, table) = (std::fs::read_to_string(&file).unwrap(), String::from_utf8(ended.stdout).unwrap());
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>") && page.contains("<svg"));
    assert_eq!(table.lines().filter(|line| line.starts_with("no-loss rate")).count(), 2, "{table}");
}

#[test]
fn wrong_usage_is_refused() {
    let cases: [&[&str]; 4] = [&["speed"], &["--seconds", "0"], &["--cpus", "1"], &["--repeats", "0"]];
    assert!(cases.iter().all(|args| bench(args).status.code() == Some(2)));
    let missing = bench(&["rate", "--cpus", "0,8001"]);
    assert_eq!(missing.status.code(), Some(1));
    let message = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(message.contains("cpu 8001 is not among the CPUs"), "{message}");
}
