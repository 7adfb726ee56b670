//! The session driven by lists of PDUs, without a socket or a thread.

mod hostile;
mod management;
mod transfer;

use std::sync::Mutex;

use super::*;
use crate::scsi::status;
use crate::target::TargetOptions;
use crate::testing::Random;
use crate::{BlockSize, Device, Identity, MemoryDevice, Provisioning, UnitOptions};
use std::io;

const NAME: &str = "iqn.2026-01.test:e3";

/// Keeps what is sent, in order.
#[derive(Default)]
struct Recorder(Mutex<Vec<Answer>>);

impl Replies for Recorder {
    fn send(&self, header: Header, data: &[u8], stat_sn: StatSn) -> io::Result<()> {
        self.0.lock().unwrap().push(Answer { header, data: data.to_vec(), stat_sn });
        Ok(())
    }
}

/// A session, its unit 0 in memory, and an initiator that counts.
struct Bench {
    session: Session,
    target: Arc<Target>,
    now: Instant,
    cmd_sn: u32,
    tag: u32,
}

#[derive(Clone)]
struct Terms {
    size_bytes: u64,
    block_size: BlockSize,
    read_only: bool,
    purpose: &'static str,
    keys: &'static [(&'static str, &'static str)],
    payload_bytes: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            size_bytes: 1 << 20,
            block_size: BlockSize::N512,
            read_only: false,
            purpose: "normal",
            keys: &[],
            payload_bytes: 32 << 20,
        }
    }
}

impl Bench {
    fn new(terms: &Terms) -> Self {
        let device = Arc::new(MemoryDevice::new(terms.size_bytes, terms.block_size.logical_bytes()));
        Self::on(device, terms)
    }

    fn on(device: Arc<dyn Device>, terms: &Terms) -> Self {
        let options = UnitOptions {
            block_size: terms.block_size,
            provisioning: Provisioning::Thin,
            read_only: terms.read_only,
            identity: Identity::new("TEST", "Disk", "1", b"seed"),
        };
        let target = TargetOptions { name: NAME.into(), units: vec![(0, device, options)], ..Default::default() };
        let targets = Arc::new(Targets::new([target], None).unwrap());
        let target = targets.targets[0].clone();
        let mut parameters = Parameters::default();
        terms.keys.iter().for_each(|(key, value)| drop(parameters.negotiate(key, value, None)));
        let nexus = Nexus { initiator: "iqn.2026-01.test:guest".into(), isid: [0, 2, 61, 0, 0, 1] };
        let settings = Settings {
            handle: 7,
            nexus: nexus.clone(),
            cid: 3,
            purpose: if terms.purpose == "discovery" { Purpose::Discovery } else { Purpose::Normal(target.clone()) },
            parameters,
            first_cmd_sn: u32::MAX - 2,
            targets,
            portal: "127.0.0.1:3260".into(),
            payload_bytes: terms.payload_bytes,
        };
        let now = Instant::now();
        // No attention is due: the bench is about other things.
        Self { session: Session::new(settings, now), target, now, cmd_sn: u32::MAX - 2, tag: 0 }
    }

    fn disk(&self) -> Vec<u8> {
        let device = &self.target.units[&0].device;
        let mut content = vec![0; device.size_bytes() as usize];
        device.read_at(&mut content, 0).unwrap();
        content
    }

    /// Hands a PDU over; nothing is carried out.
    fn hand(&mut self, header: Header, data: &[u8]) -> Vec<Action> {
        let pdu = Pdu { header, has_additional: false, data: data.to_vec(), data_intact: true };
        self.session.handle(pdu, self.now)
    }

    /// Hands a PDU over, carries out all that is ready, and gives everything that is sent.
    fn exchange(&mut self, header: Header, data: &[u8]) -> Vec<Answer> {
        let actions = self.hand(header, data);
        let mut sent = self.carry_out(actions);
        sent.extend(self.run_all());
        sent
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Vec<Answer> {
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Send(answer) | Action::Leave(answer) => sent.push(answer),
                Action::Release(pending) => sent.extend(Arc::into_inner(pending).map(|pending| pending.answer())),
                Action::Manage(scope, pending) => {
                    let lun = match scope {
                        Scope::ClearTasks(lun) | Scope::Unit(lun) => Some(lun),
                        Scope::Target => None,
                    };
                    sent.extend(self.session.abort_tasks(lun, &pending, self.now));
                    sent.extend(Arc::into_inner(pending).map(|pending| pending.answer()));
                }
                Action::Close => panic!("closed"),
            }
        }
        sent
    }

    fn run_all(&mut self) -> Vec<Answer> {
        let mut sent = Vec::new();
        while let Some(job) = self.session.next_job() {
            sent.extend(self.run(&job));
        }
        sent
    }

    fn run(&mut self, job: &Job) -> Vec<Answer> {
        let recorder = Recorder::default();
        let mut buf = Vec::new();
        let parameters = self.session.settings.parameters.clone();
        let nexus = self.session.settings.nexus.clone();
        let ending = job.run(&nexus, &self.target, &parameters, &recorder, &mut buf).unwrap();
        let finished = self.session.finish(job.order, ending.changed, self.now);
        if finished.respond {
            ending.send(&recorder).unwrap();
        }
        let mut sent = recorder.0.into_inner().unwrap();
        sent.extend(finished.answers);
        sent.extend(finished.waiting.into_iter().filter_map(Arc::into_inner).map(|pending| pending.answer()));
        sent
    }

    /// A numbered request with a fresh tag.
    fn request(&mut self, opcode: u8, flags: u8) -> Header {
        self.tag += 1;
        let header = Header::new(opcode, flags, self.tag).with_u32(at::CMD_SN, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        header
    }

    fn command(&mut self, flags: u8, expected: u32, cdb: &[u8]) -> Header {
        let mut header = self.request(opcode::SCSI_COMMAND, flag::FINAL | flags).with_u32(at::EXPECTED_LEN, expected);
        header.0[at::CDB..at::CDB + cdb.len()].copy_from_slice(cdb);
        header
    }
}

/// READ(10), WRITE(10) and others of their shape.
fn cdb10(opcode: u8, first: u32, count: u16) -> [u8; 10] {
    let (first, count) = (first.to_be_bytes(), count.to_be_bytes());
    [opcode, 0, first[0], first[1], first[2], first[3], 0, count[0], count[1], 0]
}

fn data_out(tag: u32, r2t: &Answer, sn: u32, offset: u32, last: bool) -> Header {
    Header::new(opcode::DATA_OUT, if last { flag::FINAL } else { 0 }, tag)
        .with_u32(at::TTT, r2t.header.u32(at::TTT))
        .with_u32(at::DATA_SN, sn)
        .with_u32(at::OFFSET, offset)
}

/// What the one status in `sent` says: status, key and code with qualifier, residual flag and count.
fn verdict(sent: &[Answer]) -> (u8, u8, u16, u8, u32) {
    let of_status = |answer: &&Answer| match answer.header.opcode() {
        opcode::SCSI_RESPONSE => true,
        opcode::DATA_IN => answer.header.has(flag::STATUS),
        _ => false,
    };
    let statuses: Vec<&Answer> = sent.iter().filter(of_status).collect();
    assert_eq!(statuses.len(), 1, "{sent:?}");
    let Answer { header, data, .. } = statuses[0];
    let sense = if data.len() >= 20 && header.opcode() == opcode::SCSI_RESPONSE { &data[2..] } else { &[0; 18][..] };
    let residual = header.0[at::FLAGS] & (flag::OVERFLOW | flag::UNDERFLOW);
    let code = u16::from(sense[12]) << 8 | u16::from(sense[13]);
    (header.0[at::STATUS], sense[2], code, residual, header.u32(at::RESIDUAL))
}

fn opcodes(sent: &[Answer]) -> Vec<u8> {
    sent.iter().map(|answer| answer.header.opcode()).collect()
}
