//! What each request of a front end does to a [`Session`].
//!
//! Invariant: when a request is carried out, the lanes it touches are home; what it changes takes effect when they leave again.
//! Read first: vhost-user specification, "Front-end message types".

use std::os::fd::OwnedFd;

use sys::{GuestMemory, eventfd::EventFd};
use wire::Mac;

use super::{
    device::{MIN_MTU, protocol},
    error::SessionError,
    inflight::Inflight,
    message::{CONFIG_BYTES, Header, Reply},
    request::Request,
    session::{Effect, Session},
    vring::Vring,
};
use crate::features::Features;

/// `VIRTIO_CONFIG_S_NEEDS_RESET`: the device cannot go on (virtio 1.2 section 2.1).
const NEEDS_RESET: u8 = 0x40;
/// The configuration space is written by a front end that brings a guest here, so read-only fields may be set.
const CONFIG_MIGRATION: u32 = 1;
/// What may change while rings run.
const LIVE: Features = Features::LOG_ALL.with(Features::PROTOCOL_FEATURES);

impl Session {
    /// Carries out a request; returns the reply if the request has one of its own.
    pub(super) fn carry_out(&mut self, header: Header, request: Request) -> Result<Option<Reply>, SessionError> {
        let word = |value: u64| Ok(Some(Reply::word(header.request, value)));
        match request {
            Request::GetFeatures => return word(self.device.offered().0),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => return word(protocol::OFFERED),
            Request::SetProtocolFeatures(bits) => {
                let unknown = bits & !protocol::OFFERED;
                if unknown != 0 {
                    return Err(SessionError::NotOffered { request: "SET_PROTOCOL_FEATURES", bits: unknown });
                }
                self.protocol = bits;
            }
            Request::GetQueueNum => return word(u64::from(self.device.pairs())),
            Request::GetMaxMemSlots => return word(GuestMemory::MAX_REGIONS as u64),
            // The connection is the owner; the doorbell of the log is of no use here.
            Request::SetOwner | Request::SetLogFd => {}
            Request::SetBackendReqFd(fd) => self.back_channel = Some(fd),
            Request::ResetOwner => self.rings.iter_mut().for_each(|ring| ring.enabled = false),
            Request::SetMemTable(regions) => {
                self.table.set(regions)?;
                self.rings.iter_mut().for_each(|ring| ring.lost = false);
            }
            Request::AddMemReg(spec, fd) => self.table.add(spec, fd)?,
            Request::RemMemReg(spec) => {
                self.table.remove(spec)?;
                self.lose_rings();
            }
            Request::SetLogBase { fd, size, offset } => {
                self.table.set_log(fd, offset, size)?;
                return Ok(Some(Reply::log(size, offset)));
            }
            Request::SetVringNum { ring, entries } => {
                if self.ring(ring)?.size != entries {
                    self.configurable("SET_VRING_NUM", ring)?.size = entries;
                }
            }
            Request::SetVringBase { ring, base } => self.configurable("SET_VRING_BASE", ring)?.base = base,
            Request::SetVringAddr { ring, address } => self.ring(ring)?.address = Some(address),
            Request::SetVringEnable { ring, enable } => self.ring(ring)?.enabled = enable,
            Request::SetVringKick { ring, fd } => {
                let kick = doorbell("SET_VRING_KICK", ring, fd)?;
                let vring = self.ring(ring)?;
                (vring.kick, vring.started) = (kick, true);
            }
            Request::SetVringCall { ring, fd } => {
                self.ring(ring)?.call = doorbell("SET_VRING_CALL", ring, fd)?;
            }
            Request::SetVringErr { ring, fd } => {
                self.ring(ring)?.err = doorbell("SET_VRING_ERR", ring, fd)?;
            }
            Request::GetVringBase { ring } => {
                let base = self.ring(ring)?.base;
                self.stop(ring);
                return Ok(Some(Reply::state(header.request, ring, base)));
            }
            Request::SendRarp(mac) => self.effects.push(Effect::Announce(mac)),
            Request::NetSetMtu(asked) => self.set_mtu(asked)?,
            Request::GetConfig { offset, size, flags } => return Ok(Some(self.config(offset, size, flags))),
            Request::SetConfig { offset, flags, bytes } => self.set_config(offset, flags, &bytes)?,
            Request::GetInflightFd(spec) => {
                let (inflight, fd) = Inflight::make(spec, self.rings.len())?;
                let spec = inflight.spec;
                self.inflight = Some(inflight);
                self.rings.iter_mut().for_each(|ring| ring.journal = None);
                return Ok(Some(Reply::inflight(spec, fd)));
            }
            Request::SetInflightFd(spec, fd) => {
                let packed = self.agreed().has(Features::RING_PACKED);
                self.inflight = Some(Inflight::adopt(spec, fd, self.rings.len(), packed)?);
                self.rings.iter_mut().for_each(|ring| ring.journal = None);
            }
            Request::ResetDevice => self.reset_device(),
            Request::SetStatus(status) => {
                if status == 0 {
                    self.stop_all();
                    self.reset_control();
                }
                self.status = status;
            }
            Request::GetStatus => {
                let trouble = if self.has_failed() { NEEDS_RESET } else { 0 };
                return word(u64::from(self.status | trouble));
            }
            Request::Unsupported(code) => return Err(SessionError::Unsupported(code)),
        }
        Ok(None)
    }

    fn set_features(&mut self, features: Features) -> Result<(), SessionError> {
        let unknown = features.without(self.device.offered()).0;
        if unknown != 0 {
            return Err(SessionError::NotOffered { request: "SET_FEATURES", bits: unknown });
        }
        let before = self.features;
        let bits = Features(self.agreed().0 ^ features.0).without(LIVE).0;
        if before.is_some() && bits != 0 {
            if let Some(ring) = self.rings.iter().find(|ring| ring.is_complete() && ring.enabled) {
                return Err(SessionError::FeaturesWhileRunning { bits, ring: ring.index });
            }
            self.stop_all();
        }
        self.features = Some(features);
        if !features.has(Features::PROTOCOL_FEATURES) {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        self.table.set_logging(features.has(Features::LOG_ALL))?;
        // The same features once more, with the control queue stopped: another driver begins.
        if before.is_none() || bits != 0 || (before == Some(features) && !self.has_control()) {
            self.reset_control();
        }
        Ok(())
    }

    /// Rings whose memory is gone with a region wait for it to come back, since front ends replace regions one by one.
    fn lose_rings(&mut self) {
        let memory = self.table.memory();
        for ring in self.rings.iter_mut().filter(|ring| ring.is_complete()) {
            ring.lost |= memory.is_none_or(|memory| !ring.is_inside(memory));
        }
    }

    /// A ring that may get another size or base: one that does not run. A disabled one stops by it, since some drivers begin anew without
    /// `GET_VRING_BASE`.
    fn configurable(&mut self, request: &'static str, ring: u16) -> Result<&mut Vring, SessionError> {
        let ready = self.features.is_some() && self.table.memory().is_some();
        let vring = self.ring(ring)?;
        if ready && vring.is_complete() {
            if vring.enabled {
                return Err(SessionError::RingRuns { request, ring });
            }
            self.stop(ring);
        }
        self.ring(ring)
    }

    fn stop_all(&mut self) {
        for ring in 0..self.rings.len() as u16 {
            self.stop(ring);
        }
    }

    /// Everything but the connection, what it agreed on for messages, and the memory, which the front end does not send again.
    fn reset_device(&mut self) {
        self.stop_all();
        for ring in &mut self.rings {
            *ring = Vring::new(ring.index, ring.journal_path.take());
        }
        self.features = None;
        (self.mac, self.mtu, self.status) = (self.device.mac, self.device.mtu, 0);
        self.inflight = None;
        self.reset_control();
    }

    fn set_mtu(&mut self, asked: u64) -> Result<(), SessionError> {
        let most = self.device.mtu.unwrap_or(u16::MAX);
        match u16::try_from(asked) {
            Ok(mtu) if (MIN_MTU..=most).contains(&mtu) => {
                self.mtu = Some(mtu);
                Ok(())
            }
            _ => Err(SessionError::Mtu { asked, most }),
        }
    }

    fn config(&self, offset: u32, size: u32, flags: u32) -> Reply {
        let space = self.device.config_space(self.mac, self.mtu);
        let end = (offset as usize).saturating_add(size as usize);
        // Nothing, where the question reaches past the end, is how the specification says so.
        Reply::config(offset, flags, space.get(offset as usize..end).unwrap_or_default())
    }

    /// Only the MAC address can be written, as a whole or byte by byte, and by a driver only where virtio 1 does not forbid it.
    fn set_config(&mut self, offset: u32, flags: u32, bytes: &[u8]) -> Result<(), SessionError> {
        let wrong = SessionError::Config { offset, size: bytes.len() };
        let start = offset as usize;
        let migration = flags == CONFIG_MIGRATION;
        let end = if migration { CONFIG_BYTES } else { 6 };
        let writable = migration || !self.agreed().has(Features::VERSION_1);
        if !writable || start.saturating_add(bytes.len()) > end {
            return Err(wrong);
        }
        let mut mac = self.mac.map_or([0; 6], Mac::bytes);
        mac.iter_mut().skip(start).zip(bytes).for_each(|(to, byte)| *to = *byte);
        self.mac = Some(Mac::new(mac));
        Ok(())
    }
}

fn doorbell(request: &'static str, ring: u16, fd: Option<OwnedFd>) -> Result<Option<EventFd>, SessionError> {
    fd.map(EventFd::adopt).transpose().map_err(|error| SessionError::Doorbell { request, ring, error })
}
