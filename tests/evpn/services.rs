//! What docs/evpn.md has to copy: unit files and a speaker's configuration, asked of those who read them.

use std::fs;

use super::lab::netns::NetNs;
use super::lab::process::Place;
use super::lab::{Lab, daemon, need_program, require};
use super::site::PATIENCE;

/// The first block of code in the document that has this line.
fn block(document: &str, line: &str) -> String {
    let blocks = document.split("\n```").skip(1).step_by(2);
    let mut with =
        blocks.filter_map(|block| block.split_once('\n')).filter(|(_, text)| text.lines().any(|one| one == line));
    with.next().map(|(_, text)| text.to_owned()).unwrap_or_else(|| panic!("no block with {line:?}"))
}

#[test]
fn unit_files_and_the_speakers_configuration_are_right() {
    let lab = require!(Lab::new());
    require!(need_program("systemd-analyze", "systemd"));
    let gobgpd = require!(need_program("gobgpd", "gobgpd"));
    let host = require!(NetNs::new(&lab, "h1"));
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/evpn.md")).unwrap();
    let programs = [
        ("/usr/bin/gobgpd", gobgpd.display().to_string()),
        ("/usr/local/bin/trunkline", daemon::program().display().to_string()),
    ];
    let mut files = String::new();
    for name in ["gobgpd.service", "trunkline.service"] {
        let mut text = block(&document, &format!("# /etc/systemd/system/{name}"));
        for (usual, here) in &programs {
            text = text.replace(&format!("={usual} "), &format!("={here} "));
        }
        let file = lab.path(name);
        fs::write(&file, text).unwrap();
        files += &format!(" {}", file.display());
    }
    let said = host.run(&format!("systemd-analyze verify --man=no --generators=no{files}"), PATIENCE);
    assert!(said.ok() && said.output.trim().is_empty(), "{}", said.output);
    let file = lab.path("gobgpd.toml");
    let one = block(&document, "[global.config]");
    let reflector = block(&document, "  [neighbors.route-reflector.config]");
    let timers = "  [neighbors.timers.config]\n";
    for text in [one.clone(), one.replace(timers, &format!("{reflector}\n{timers}"))] {
        fs::write(&file, &text).unwrap();
        let said = host.run(&format!("gobgpd -f {} -d", file.display()), PATIENCE);
        assert!(said.ok() && !said.output.contains("error"), "{text}\n{}", said.output);
    }
}
