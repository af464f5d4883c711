//! The shape of the results, as programs and people get them, of samples made up here.

use serde_json::Value;

use super::*;
use crate::{
    args::Measurement,
    bench::{case, html, machine::Use},
};

const CPUS: Cpus = Cpus { generator: 0, worker: 1 };

fn host() -> Host {
    Host {
        name: "a <b> & \"c\"".to_owned(),
        processor: "some".to_owned(),
        kernel: "6.1".to_owned(),
        cpus_allowed: 2,
        tsc_hz: 2_000_000_000,
        trunkline: "0.1.0",
    }
}

fn sample(case: &Case, n: u64) -> Sample {
    let mut times = Histogram::new_with_max(10_000_000_000, 3).unwrap();
    for ns in 1..=1000 {
        times.record(ns * (1 + n)).unwrap();
    }
    Sample {
        figure: if case.what.is_latency() { 0.0 } else { 10.0 + n as f64 },
        times: case.what.is_latency().then_some(times),
        sent: 1000,
        received: 990,
        dropped: 10,
        worker_busy: 0.98,
        cycles_per_frame: 60.0,
        used: Use { generator: 1.0, worker: 0.99, steal: 0.0 },
        offered_mpps: (case.what == What::LatencyHalf).then_some(5.0),
        ..Sample::default()
    }
}

fn measured() -> Vec<(Case, Vec<Sample>)> {
    let all = case::plan(Measurement::All);
    all.into_iter().map(|case| (case, (0..3).map(|n| sample(&case, n)).collect())).collect()
}

fn results(measured: &[(Case, Vec<Sample>)]) -> Results {
    Results::new(host(), CPUS, Settings { seconds: 0.25, warm_up_seconds: 0.1, repeats: 3 }, measured)
}

fn has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name} is missing in {value}");
    }
}

#[test]
fn json_has_a_row_for_every_case_with_units_in_names() {
    let json = serde_json::to_value(results(&measured())).unwrap();
    has(&json, &["host", "cpus", "settings", "rows", "latency", "notes"]);
    let (rows, latency) = (json["rows"].as_array().unwrap(), json["latency"].as_array().unwrap());
    assert_eq!(rows.len() + latency.len(), measured().len());
    let common = [
        "what",
        "path",
        "size_bytes",
        "direction",
        "ports",
        "macs",
        "flows",
        "repeats",
        "worker_busy",
        "worker_cpu",
        "cycles_per_frame",
        "generator_cpu",
        "steal",
        "frames_sent",
        "frames_received",
        "frames_dropped",
        "frames_lost",
        "disturbed",
        "disturbed_repeats",
    ];
    for row in rows {
        has(row, &common);
        has(row, &["unit", "median", "min", "max"]);
        assert_eq!(
            (row["median"].as_f64(), row["min"].as_f64(), row["max"].as_f64()),
            (Some(11.0), Some(10.0), Some(12.0))
        );
        assert_eq!((row["frames_lost"].as_i64(), row["frames_sent"].as_u64()), (Some(0), Some(3000)));
    }
    for row in latency {
        has(row, &common);
        has(row, &["offered_mpps", "frames_timed", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"]);
        assert_eq!(row["frames_timed"].as_u64(), Some(3000));
        assert!(
            (row["max_us"].as_f64().unwrap() - 3.0).abs() < 0.01
                && row["p50_min_us"].as_f64() < row["p50_max_us"].as_f64()
        );
    }
    assert_eq!(rows[0]["direction"], "one-way");
    assert_eq!((&rows[0]["what"], &rows[0]["unit"]), (&Value::from("rate"), &Value::from("Mpps")));
}

#[test]
fn what_was_wrong_is_marked_and_noted() {
    let mut measured = measured();
    assert!(!results(&measured).notes.iter().any(|note| note.contains("disturbed")));
    measured[0].1[1].used.worker = 0.5;
    measured[1].1[0].received = 1005;
    let results = results(&measured);
    assert_eq!((results.rows[0].effort.disturbed, results.rows[0].effort.disturbed_repeats), (true, 1));
    assert!(!results.rows[1].effort.disturbed);
    assert_eq!(results.rows[1].effort.frames_lost, -15);
    let noted = |what: &str| results.notes.iter().any(|note| note.contains(what));
    assert!(noted("disturbed") && noted("15 frames were lost"), "{:?}", results.notes);
    let one = Cpus { worker: 0, ..CPUS };
    assert!(Results::new(host(), one, results.settings, &measured).notes[0].contains("shared CPU 0"));
    let table = results.to_string();
    assert!(table.contains("disturbed 1/3") && table.contains("latency, one in flight"), "{table}");
}

/// The elements of a page that is well-formed but for HTML's elements without an end.
fn elements(page: &str) -> Vec<String> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("an open tag in {part}"));
        let name = tag.split_whitespace().next().unwrap().trim_end_matches('/').to_owned();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop().as_deref(), Some(name), "{part}"),
            None if name == "!DOCTYPE" || name == "meta" || tag.ends_with('/') => all.push(tag.to_owned()),
            None => {
                all.push(tag.to_owned());
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

#[test]
fn the_page_is_whole_and_loads_nothing() {
    let results = results(&measured());
    let page = html::page(&results).unwrap();
    for load in ["http:", "https:", "//", "url(", "@import", "src=", "href=", "<script", "<link"] {
        assert!(!page.contains(load), "{load} in the page");
    }
    assert!(page.contains("a &lt;b&gt; &amp; &quot;c&quot;"), "what the machine is called is escaped");
    let elements = elements(&page);
    let count = |start: &str| elements.iter().filter(|tag| tag.starts_with(start)).count();
    assert_eq!((count("tr class=\"rate\""), count("g class=\"row\"")), (results.rows.len(), results.rows.len()));
    assert_eq!((count("tr class=\"latency\""), count("polyline")), (results.latency.len(), results.latency.len()));
    assert!(elements.iter().all(|tag| !tag.contains("NaN") && !tag.contains("inf")));
    // A run of one kind has a page as well.
    let few = &measured()[..1];
    assert!(html::page(&self::results(few)).unwrap().contains("64 B, one-way, switch"));
}
