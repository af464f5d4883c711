//! `doctor`: is this host fit for what a file asks of it, and what is to be done where it is not?
//!
//! Invariant: one check is one function, which leaves everything as it was and is in nobody's way (a directory is tried by a file that is removed at
//! once, an interface by opening it, a name server by a question); only `--repair` changes something, and that is [`crate::bridged::recover`]. A *problem* is what stops something that was asked for, a *warning* what may. Read first: [`host`], [`networks`].

use serde::Serialize;

use crate::{
    config::{Config, ConfigError, Network, Surroundings},
    table::Table,
};

mod host;
mod networks;
mod paths;
mod running;

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It may be in the way of something.
    Warning,
    /// It is.
    Problem,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do; empty where there is nothing to do.
    pub remedy: String,
}

impl Check {
    /// As it should be.
    fn fine(name: impl Into<String>, detail: impl Into<String>) -> Check {
        Check { name: name.into(), state: State::Ok, detail: detail.into(), remedy: String::new() }
    }

    /// In the way of something, or perhaps so.
    fn wrong(name: impl Into<String>, state: State, detail: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name: name.into(), state, detail: detail.into(), remedy: remedy.into() }
    }
}

/// What all checks found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order in which they are told.
    pub checks: Vec<Check>,
    /// There is no problem.
    pub ok: bool,
}

impl Report {
    /// How many problems there are.
    pub fn problems(&self) -> usize {
        self.count(State::Problem)
    }

    fn count(&self, state: State) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }

    /// A table for people, or JSON for programs.
    pub fn text(&self, json: bool) -> String {
        if json {
            return serde_json::to_string(self).unwrap_or_default() + "\n";
        }
        let mut table = Table::new(&["CHECK", "STATE", "WHAT IS"]);
        for check in &self.checks {
            let state = match check.state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Problem => "PROBLEM",
            };
            // Commands of several lines stand below, whole.
            table.row([
                check.name.clone(),
                state.to_owned(),
                check.detail.lines().next().unwrap_or_default().to_owned(),
            ]);
        }
        let mut text = table.to_string();
        for check in self.checks.iter().filter(|check| check.state != State::Ok) {
            text.push_str(&format!("\n{}: {}\n", check.name, check.detail));
            if !check.remedy.is_empty() {
                text.push_str(&format!("  to do: {}\n", check.remedy));
            }
        }
        text + &format!("\n{} problems, {} warnings\n", self.problems(), self.count(State::Warning))
    }
}

/// Looks at the host, and at the networks of a file where there is one that is right.
pub fn examine(config: Result<Config, ConfigError>, around: &Surroundings, repair: bool) -> Report {
    let (run_dir, state_dir) = match &config {
        Ok(config) => (Some(config.host.run_dir.clone()), Some(config.host.state_dir.clone())),
        Err(_) => (around.run_dir(), around.state_dir()),
    };
    let socket = config.as_ref().ok().map(|config| config.host.control_socket.as_path());
    let mut checks = vec![
        file(&config),
        host::kernel(),
        host::kvm(),
        host::tun(),
        socket.and_then(running::descriptors).unwrap_or_else(host::descriptors),
        host::ping(),
        host::local_ports(),
        host::hugepages(),
        host::directory("run_dir", run_dir.as_deref()),
        host::directory("state_dir", state_dir.as_deref()),
        host::resolvers(config.as_ref().ok()),
        host::bridge_firewall(),
    ];
    let capabilities = host::capabilities(config.as_ref().ok());
    checks.splice(4..4, capabilities);
    checks.extend(state_dir.iter().flat_map(|dir| networks::left_over(dir, repair)));
    if let Ok(config) = &config {
        checks.extend(config.networks.iter().flat_map(Network::segments).filter_map(networks::subnet));
        checks.extend(config.networks.iter().filter_map(|network| networks::uplink(&config.host, network)));
        checks.extend(config.networks.iter().filter_map(networks::way_out));
        checks.extend(config.vteps.iter().filter_map(|vtep| networks::key(config, vtep)));
        checks.extend(paths::check(config));
        checks.extend(running::loops(&config.host.control_socket));
        checks.extend(running::gateways(config));
        checks.extend(running::seals(&config.host.control_socket));
        checks.extend(running::refusals(&config.host.control_socket));
        checks.extend(config.vteps.iter().filter_map(networks::speaker));
    }
    let ok = checks.iter().all(|check| check.state != State::Problem);
    Report { checks, ok }
}

fn file(config: &Result<Config, ConfigError>) -> Check {
    match config {
        Ok(config) => Check::fine("configuration", config.file.display().to_string()),
        Err(ConfigError::Nowhere(_)) => Check::fine("configuration", "no file; the host alone is looked at"),
        Err(error) => {
            let remedy = "mend the file; `trunkline check` says more";
            Check::wrong("configuration", State::Problem, error.to_string(), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_no_problem_and_a_remedy_is_told() {
        let warning = Check::wrong("b", State::Warning, "is odd", "do this");
        let report = Report { checks: vec![Check::fine("a", "good"), warning], ok: true };
        let text = report.text(false);
        assert!(text.contains("b: is odd\n  to do: do this") && text.contains("0 problems, 1 warnings"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.text(true)).unwrap();
        assert_eq!((&json["ok"], &json["checks"][1]["state"]), (&true.into(), &"warning".into()));
        assert_eq!(json["checks"][0]["remedy"], "");
    }
}
