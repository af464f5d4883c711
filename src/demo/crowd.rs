//! `demo --guests N`: many guests on one network, each of which pings another one.
//!
//! Invariant: the figures are of this run: the time until every guest was answered, and what the process has grown by for each.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    DemoError,
    guests::{Asked, Guest, number},
    net::Net,
    table::Table,
};

/// Most guests: a /16 has room for more, the memory of a machine mostly not.
const MOST: u16 = 4000;

/// Boots `count` guests and lets each ping the next.
pub(super) fn run(table: &mut Table, asked: &Asked, count: u16) -> Result<(), DemoError> {
    if !(2..=MOST).contains(&count) {
        return Err(DemoError::Guests(format!("--guests {count}: 2 to {MOST} are possible")));
    }
    let mut text = "[networks.lan]\nmode = \"isolated\"\n".to_owned();
    for n in 0..count {
        text.push_str(&format!("[guests.g{n}]\nports = [{{ network = \"lan\" }}]\n"));
    }
    let net = Net::start(&text, Err("not needed".to_owned()))?;
    let mut guests = Vec::new();
    let before = resident();
    let begun = Instant::now();
    let mut last_boot = Duration::ZERO;
    table.check(&format!("{count} guests boot"), || {
        for n in 0..count {
            guests.push(Guest::start(asked, &net, &format!("g{n}/0"), n)?);
        }
        guests.iter().try_for_each(Guest::ready)?;
        last_boot = begun.elapsed();
        Ok::<_, String>(format!("in {:.2} s", last_boot.as_secs_f64()))
    })?;
    if guests.len() != usize::from(count) {
        return Ok(());
    }
    table.check("each pings another one and is answered", || {
        for (n, guest) in (0..count).zip(&guests) {
            guest.send(&format!("address {}/16", address(n)))?;
        }
        guests.iter().try_for_each(|guest| guest.reply().map(drop))?;
        for (n, guest) in (0..count).zip(&guests) {
            guest.send(&format!("ping {} count=1 ms=10000", address((n + 1) % count)))?;
        }
        let mut slowest = 0;
        for (n, guest) in guests.iter().enumerate() {
            let reply = guest.reply().map_err(|why| format!("guest {n}: {why}"))?;
            slowest = number(&reply, "max_us")?.max(slowest);
        }
        let took = begun.elapsed().as_secs_f64();
        let ms = slowest as f64 / 1e3;
        Ok::<_, String>(format!(
            "{took:.2} s from the first start to the last answer; the slowest ping took {ms:.1} ms"
        ))
    })?;
    table.check("memory", || match (before, resident()) {
        (Some(before), Some(after)) => {
            let each = after.saturating_sub(before) as f64 / f64::from(count) / 1024.0;
            Ok(format!("{each:.2} MiB for each guest"))
        }
        _ => Err("the kernel does not say how much this process uses".to_owned()),
    })
}

fn address(n: u16) -> String {
    format!("10.88.{}.{}", n / 250, n % 250 + 1)
}

/// Memory of this process in KiB, each page counted once (`Pss` of proc_pid_smaps_rollup(5)).
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
