//! DPDK: two virtio-user ports as the front ends of a switch (assets/dpdk_frames.c), and testpmd as a back end, or as a cable between back ends.
//!
//! Neither needs hugepages: with `--no-huge` DPDK takes its memory from one memfd, which vhost-user can share.

use super::frames::{FrameReport, Traffic, Vlan};
use super::process::{Process, guarded, guarded_tree, status_number};
use super::{Lab, Unable, build, need_program, wait_for};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

/// One run of frames from port 0 to port 1 and back.
#[derive(Debug, Clone)]
pub struct DpdkFrames {
    /// The two ports' vhost-user sockets; DPDK connects (add `server=1` to `devargs` to listen).
    pub sockets: [PathBuf; 2],
    /// Arguments of net_virtio_user for both ports, such as `queues=1,queue_size=256,mrg_rxbuf=1,in_order=1,packed_vq=0`.
    pub devargs: String,
    /// The ports' MAC addresses; random if `None`.
    pub macs: Option<[String; 2]>,
    /// What is sent each way.
    pub traffic: Traffic,
    /// The tag that each port sends and must receive.
    pub vlans: [Vlan; 2],
    /// Whether super-frames may arrive whole (GUEST_TSO4/6).
    pub lro: bool,
    /// Whether frames may arrive with their checksum owed (GUEST_CSUM).
    pub rx_checksum: bool,
    /// TCP payload above which a frame leaves as a super-frame.
    pub mss: u16,
    /// Bytes of a frame in one descriptor when sending; larger frames are chains.
    ///
    /// With `packed_vq=1,in_order=0`, DPDK 22.11's driver stops sending when chains of 2 to 7 segments (which go into
    /// indirect tables) are mixed with longer ones on one ring, whatever the back end: keep a run to one kind.
    pub segment: u32,
    /// Bytes of a receive buffer; without mergeable buffers a frame must fit into one.
    pub mbuf: u32,
    /// Frames in flight.
    pub window: u32,
    /// With `server=1`: DPDK watches its links and accepts back ends anew; lost frames do not stop it.
    pub reconnect: bool,
    /// How long a direction may take.
    pub timeout: Duration,
}

impl DpdkFrames {
    /// Split rings of 256 with mergeable buffers, no offloads on the receiving side beyond checksums.
    pub fn new(sockets: [PathBuf; 2], traffic: Traffic) -> Self {
        Self {
            sockets,
            devargs: "queues=1,queue_size=256,mrg_rxbuf=1,in_order=0,packed_vq=0".into(),
            macs: None,
            traffic,
            vlans: [Vlan::Untagged; 2],
            lro: false,
            rx_checksum: true,
            mss: 1448,
            segment: 2048,
            mbuf: 2048,
            window: 16,
            reconnect: false,
            timeout: Duration::from_secs(20),
        }
    }

    /// Runs it. Panics when DPDK does not come up, or the device does not offer the offloads that the traffic needs.
    pub fn run(&self, lab: &Lab) -> Result<DpdkReport, Unable> {
        Ok(self.start(lab)?.report())
    }

    /// Starts it and leaves it running.
    pub fn start(&self, lab: &Lab) -> Result<DpdkRun, Unable> {
        let program = build::dpdk_frames()?;
        let mut command = guarded_tree(program);
        for (index, socket) in self.sockets.iter().enumerate() {
            let mac = self.macs.as_ref().map(|macs| format!(",mac={}", macs[index])).unwrap_or_default();
            command.args(["--port", &format!("path={},{}{mac}", socket.display(), self.devargs)]);
            command.args([&format!("--vlan{index}"), &self.vlans[index].argument()]);
        }
        let flag = |yes: bool| if yes { "1" } else { "0" };
        command.args(["--lro", flag(self.lro), "--rx-checksum", flag(self.rx_checksum)]);
        command.args(["--mss", &self.mss.to_string(), "--segment", &self.segment.to_string()]);
        command.args(["--mbuf", &self.mbuf.to_string(), "--window", &self.window.to_string()]);
        command.args(["--reconnect", flag(self.reconnect)]);
        command.args(["--timeout-ms", &self.timeout.as_millis().to_string()]).args(self.traffic.arguments());
        let process = Process::start(lab.dir(), "dpdk-frames", command);
        Ok(DpdkRun { process, patience: self.timeout * 2 + Duration::from_secs(40), devargs: self.devargs.clone() })
    }
}

/// A running exchange of frames.
#[derive(Debug)]
pub struct DpdkRun {
    process: Process,
    patience: Duration,
    devargs: String,
}

impl DpdkRun {
    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits for its end and takes its report.
    pub fn report(mut self) -> DpdkReport {
        let status = self.process.wait(self.patience).map(status_number);
        let log = self.process.log();
        assert!(status == Some(0), "dpdk_frames ended with {status:?} ({}):\n{log}", self.devargs);
        let report = log.lines().find(|line| line.starts_with("{\"ports\"")).unwrap_or_default();
        serde_json::from_str(report).unwrap_or_else(|e| panic!("no report ({e}):\n{log}"))
    }
}

/// What dpdk_frames has seen.
#[derive(Debug, Clone, Deserialize)]
pub struct DpdkReport {
    /// Offload capabilities of both ports, DPDK's bits.
    pub ports: [DpdkPort; 2],
    /// What arrived: at port 1 from port 0, then at port 0 from port 1.
    pub directions: [FrameReport; 2],
    /// Both directions are clean.
    pub clean: bool,
}

/// What a device offers, as RTE_ETH_RX_OFFLOAD_* and RTE_ETH_TX_OFFLOAD_* bits.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct DpdkPort {
    /// Receive offloads.
    pub rx_offloads: u64,
    /// Transmit offloads.
    pub tx_offloads: u64,
}

/// DPDK's testpmd: what enters one socket leaves by the other (ports 0 and 1, 2 and 3, ...).
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    _input: ChildStdin,
}

impl Testpmd {
    /// Starts it as a vhost-user back end, which the laboratory itself is tested against, listening on these sockets; `devargs` are arguments of
    /// net_vhost for all of them, such as `tso=1`, or `client=1` to connect instead.
    pub fn start(lab: &Lab, sockets: &[PathBuf], devargs: &str) -> Result<Self, Unable> {
        let more = if devargs.is_empty() { String::new() } else { format!(",{devargs}") };
        Self::of(lab, "net_vhost", sockets.iter().map(|socket| format!("iface={}{more}", socket.display())))
    }

    /// Starts it as a front end of two back ends, which listen on these sockets: a cable between two switches.
    pub fn cable(lab: &Lab, sockets: &[PathBuf; 2]) -> Result<Self, Unable> {
        let port = |socket: &PathBuf| format!("path={},queues=1,queue_size=1024", socket.display());
        Self::of(lab, "net_virtio_user", sockets.iter().map(port))
    }

    fn of(lab: &Lab, driver: &str, ports: impl Iterator<Item = String>) -> Result<Self, Unable> {
        let program = need_program("dpdk-testpmd", "dpdk-dev")?;
        need_program("stdbuf", "coreutils")?;
        let mut command = guarded("stdbuf");
        command.arg("-oL").arg(program);
        // Two logical cores on whatever processors there are.
        command.args(["--lcores", "0@0,1@0", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf"]);
        command.arg(format!("--file-prefix=testpmd{}", super::unique()));
        for (index, port) in ports.enumerate() {
            command.arg(format!("--vdev={driver}{index},{port}"));
        }
        command.args(["--", "--forward-mode=io", "--auto-start", "--total-num-mbufs=16384", "--nb-cores=1"]);
        let (mut process, input) = Process::start_held(lab.dir(), "testpmd", command);
        wait_for("testpmd to forward", Duration::from_secs(30), || {
            assert!(process.running(), "testpmd ended:\n{}", process.log_tail(30));
            process.log().contains("Press enter to exit")
        });
        Ok(Self { process, _input: input })
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// The sockets `<name>0.sock`, `<name>1.sock`, ... in a laboratory's directory.
pub fn sockets<const N: usize>(lab: &Lab, name: &str) -> [PathBuf; N] {
    std::array::from_fn(|index| lab.path(&format!("{name}{index}.sock")))
}

/// Whether a socket is there.
pub fn is_there(socket: &Path) -> bool {
    socket.exists()
}
