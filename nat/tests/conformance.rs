//! `docs/nat-conformance.md` is made of the tests: a doc comment `/// REQUIREMENT | ENGINE | met or not met | why` above a test whose name
//! begins with `rfc`. An engine may be followed by the version of IP that a test is about; in `suites` every test is run over both. Run with `TRUNKLINE_WRITE_DOCS=1` to write the page anew.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{fmt::Write, fs, path::Path};

const SUITES: [&str; 15] = [
    "suites/rfc4787",
    "rfc4787",
    "sockets_rfc4787",
    "suites/rfc5382",
    "rfc5382",
    "sockets_rfc5382",
    "suites/rfc5508",
    "rfc5508",
    "sockets_rfc5508",
    "suites/rfc7857",
    "sockets_rfc7857",
    "suites/rfc6888",
    "rfc6888",
    "nat66",
    "properties",
];
const ENGINES: [&str; 4] = ["packet", "packet, IPv4", "packet, IPv6", "sockets"];

fn page() -> String {
    let mut page = String::from(
        "# What the NAT conforms to\n\nMade of the tests in `nat/tests` by `TRUNKLINE_WRITE_DOCS=1 cargo test -p trunkline-nat --test conformance`; every line \
         names the test that shows it. What the packet engine does it does over IPv4 (NAT44) and over IPv6 (NAT66, with ports) alike, and each of its tests is run over both, but \
         for the lines that name one version of IP. Those RFCs are about IPv4; what they say of \"fragmentation needed\" is said of \"packet too big\", and so on by RFC 4443.\nWhere a requirement is not met, its test shows what is done instead. The numbers of requirements and what they ask for have been compared with \
         RFC 4787, 5382, 5508 and 6888, by a list that quotes the first sentences of each; the items below a requirement (a, b, ...) have not. \
         The sections of RFC 7857 have been compared with a list of its headings and of sentences of some of them.\n\n\
         | requirement | engine | met | how, or why not | test |\n| --- | --- | --- | --- | --- |\n",
    );
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for suite in SUITES {
        let source = fs::read_to_string(tests.join(suite).with_extension("rs")).unwrap();
        let mut said: Option<Vec<&str>> = None;
        for line in source.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("/// RFC ") {
                let cells: Vec<&str> = comment.split(" | ").collect();
                assert_eq!(cells.len(), 4, "{suite}: four parts are wanted in: {line}");
                assert!(ENGINES.contains(&cells[1]) && ["met", "not met"].contains(&cells[2]), "{line}");
                said = Some(cells);
            } else if let Some(name) = line.strip_prefix("fn rfc") {
                let name = name.split('(').next().unwrap();
                let Some(cells) = said.take() else { panic!("{suite}: rfc{name} says no requirement") };
                let [requirement, engine, met, how] = cells[..] else { panic!() };
                writeln!(page, "| RFC {requirement} | {engine} | {met} | {how} | `rfc{name}` |").unwrap();
            }
        }
        assert!(said.is_none(), "{suite}: a requirement without a test");
    }
    page
}

#[test]
fn the_page_is_that_of_the_tests() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat-conformance.md");
    let page = page();
    if std::env::var_os("TRUNKLINE_WRITE_DOCS").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == page,
        "docs/nat-conformance.md is not that of the tests; write it anew with TRUNKLINE_WRITE_DOCS=1"
    );
}
