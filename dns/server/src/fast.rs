//! The short way from question to reply, for the questions that resolvers ask all day: one question of class IN about our
//! zone, at most an OPT record behind it. It copies what was written when the answers were compiled, patches the id, the
//! question and the OPT record, and allocates nothing.
//!
//! Everything else is [`Unusual`] and goes the long way (`reply.rs`). Tests ask both and compare.

use std::net::IpAddr;

use steering::{Client, Question, ServiceSet, TTL_AT, Type, Written};

use crate::{
    cookie::{self, Given, Secret},
    ecs::{self, Ecs},
    metrics::{QueryType, Rcode},
    reply::{InForce, OPT_BYTES, Terms, UDP_BYTES_MAX, datagram_bytes_max},
    signer::Ahead,
    wire::{HEADER_BYTES, class, option},
};

/// Longest name, in bytes (RFC 1035 §3.1).
const NAME_BYTES_MAX: usize = 255;

/// A question for the long way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unusual;

/// A reply that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fast {
    pub(crate) length: usize,
    pub(crate) qtype: QueryType,
    pub(crate) rcode: Rcode,
    /// True if the client showed a good cookie.
    pub(crate) is_trusted: bool,
    /// The end of the question.
    question_end: usize,
    /// The beginning of the OPT record; the end of the message if there is none.
    opt_at: usize,
}

impl Fast {
    /// Makes a reply into one without records that tells the client to ask again over TCP. Returns its length.
    pub(crate) fn cut(&self, reply: &mut [u8]) -> usize {
        reply.copy_within(self.opt_at..self.length, self.question_end);
        let opts = u8::from(self.opt_at < self.length);
        reply[2] |= 0x02;
        reply[6..12].copy_from_slice(&[0, 0, 0, 0, 0, opts]);
        self.question_end + self.length - self.opt_at
    }
}

/// The content of an OPT record of a query.
#[derive(Debug, Clone, Copy, Default)]
struct Opt {
    payload: u16,
    dnssec_ok: bool,
    subnet: Option<Ecs>,
    cookie: Option<Given>,
}

/// Writes the reply to a datagram into `out`. `now_s` is the time in seconds since 1970.
#[inline]
pub(crate) fn reply(
    in_force: &InForce,
    terms: &Terms,
    message: &[u8],
    from: IpAddr,
    now_s: u32,
    out: &mut [u8; UDP_BYTES_MAX as usize],
) -> Result<Fast, Unusual> {
    let header: &[u8; HEADER_BYTES] = message.first_chunk().ok_or(Unusual)?;
    // A query (QR 0, opcode 0) with one question and at most one record, which stands in the additional section.
    let is_query = header[2] & 0xf8 == 0;
    if !is_query || header[4..11] != [0, 1, 0, 0, 0, 0, 0] || header[11] > 1 {
        return Err(Unusual);
    }
    let name_end = name_end(message).ok_or(Unusual)?;
    let name = &message[HEADER_BYTES..name_end];
    let fixed: &[u8; 4] = message[name_end..].first_chunk().ok_or(Unusual)?;
    let kind = Type(u16::from_be_bytes([fixed[0], fixed[1]]));
    if u16::from_be_bytes([fixed[2], fixed[3]]) != class::IN {
        return Err(Unusual);
    }
    let question_end = name_end + 4;
    let opt = match (&message[question_end..], header[11]) {
        ([], 0) => None,
        (record, 1) => Some(read_opt(record, &terms.secret, from, now_s).ok_or(Unusual)?),
        _ => return Err(Unusual),
    };

    let wants_signature = terms.is_signed && opt.is_some_and(|opt| opt.dnssec_ok);
    // Denials, and the types that only the signer has, come by the long way.
    let is_signers = matches!(kind, Type::RRSIG | Type::NSEC | Type::DNSKEY);
    if terms.is_signed && is_signers || wants_signature && !ServiceSet::has(kind) {
        return Err(Unusual);
    }
    let is_trusted = opt.and_then(|opt| opt.cookie).is_some_and(|given| given.is_good);
    let times = if is_trusted { usize::MAX } else { terms.amplification };
    let bytes_max = datagram_bytes_max(opt.map(|opt| opt.payload), message.len(), times);
    let opt_bytes = opt.map_or(0, |opt| opt_bytes(&opt));
    let room = bytes_max.checked_sub(question_end + opt_bytes).ok_or(Unusual)?;
    let client = Client {
        resolver: from,
        subnet: opt.and_then(|opt| opt.subnet?.subnet()),
    };
    let question = Question {
        name,
        kind,
        client: &client,
        // A signature covers the whole set. If that has no room, the long way cuts the reply.
        room: if wants_signature { usize::MAX } else { room },
    };
    out[..question_end].copy_from_slice(&message[..question_end]);
    let behind = &mut out[question_end..question_end + room];
    let mut written = in_force.answers.write(question, behind).map_err(|_| Unusual)?;
    if wants_signature {
        sign(&mut written, in_force.signed.as_ref(), now_s, behind).ok_or(Unusual)?;
    }

    let rcode = if written.no_such_name {
        Rcode::NxDomain
    } else {
        Rcode::NoError
    };
    // QR and AA; the client's RD.
    out[2] = 0x84 | header[2] & 0x01;
    // The client's CD, and the code.
    out[3] = header[3] & 0x10 | if written.no_such_name { 3 } else { 0 };
    out[6..8].copy_from_slice(&written.answers.to_be_bytes());
    out[8..10].copy_from_slice(&written.authorities.to_be_bytes());
    let additionals = written.additionals + u16::from(opt.is_some());
    out[10..12].copy_from_slice(&additionals.to_be_bytes());
    let opt_at = question_end + written.length;
    let length = opt_at + opt_bytes;
    if let Some(opt) = opt {
        write_opt(&opt, written.scope, &mut out[opt_at..length]).ok_or(Unusual)?;
    }
    Ok(Fast {
        length,
        qtype: QueryType::of(kind),
        rcode,
        is_trusted,
        question_end,
        opt_at,
    })
}

/// Adds the signature that was made beforehand to an answer for the service. `None` if there is none, or no room.
fn sign(written: &mut Written, signed: Option<&Ahead>, now_s: u32, out: &mut [u8]) -> Option<()> {
    let signature = signed?.get(written.set?, now_s)?;
    let ttl: [u8; 4] = *out.get(TTL_AT..)?.first_chunk()?;
    let place = out.get_mut(written.length..)?.get_mut(..signature.len())?;
    place.copy_from_slice(signature);
    place[TTL_AT..TTL_AT + 4].copy_from_slice(&ttl);
    written.length += signature.len();
    written.answers += 1;
    Some(())
}

/// The end of the question's name. `None` if it is cut, too long or contains a pointer.
#[inline]
fn name_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    at += 1;
    (at - HEADER_BYTES <= NAME_BYTES_MAX).then_some(at)
}

/// Reads an OPT record that is the rest of the message. `None` if anything in it is unusual.
#[inline]
fn read_opt(record: &[u8], secret: &Secret, from: IpAddr, now_s: u32) -> Option<Opt> {
    let (fixed, mut options) = record.split_first_chunk::<OPT_BYTES>()?;
    let [
        0,
        0,
        41,
        payload_high,
        payload_low,
        _,
        version,
        flags,
        _,
        length_high,
        length_low,
    ] = *fixed
    else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if version != 0 || length != options.len() {
        return None;
    }
    let mut opt = Opt {
        payload: u16::from_be_bytes([payload_high, payload_low]),
        dnssec_ok: flags & 0x80 != 0,
        ..Opt::default()
    };
    while !options.is_empty() {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let code = u16::from_be_bytes([head[0], head[1]]);
        let (data, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[2], head[3]])))?;
        match code {
            ecs::CODE if opt.subnet.is_some() => return None,
            ecs::CODE => opt.subnet = Some(Ecs::read(data)?),
            cookie::CODE if opt.cookie.is_some() => return None,
            cookie::CODE => opt.cookie = Some(secret.give(data, from, now_s)?),
            option::NSID => return None,
            // Unknown options are skipped (RFC 6891 §6.1.2).
            _ => {}
        }
        options = rest;
    }
    Some(opt)
}

fn opt_bytes(opt: &Opt) -> usize {
    let cookie = opt.cookie.map_or(0, |_| cookie::REPLY_BYTES);
    let subnet = opt.subnet.map_or(0, |subnet| subnet.reply_bytes());
    OPT_BYTES + cookie + subnet
}

/// Writes the OPT record of a reply, which is exactly as long as `out`.
#[inline]
fn write_opt(opt: &Opt, scope: u8, out: &mut [u8]) -> Option<()> {
    let options = (out.len() - OPT_BYTES) as u16;
    let [payload_high, payload_low] = UDP_BYTES_MAX.to_be_bytes();
    let [length_high, length_low] = options.to_be_bytes();
    let flags = if opt.dnssec_ok { 0x80 } else { 0 };
    let (fixed, mut rest) = out.split_first_chunk_mut::<OPT_BYTES>()?;
    *fixed = [
        0,
        0,
        41,
        payload_high,
        payload_low,
        0,
        0,
        flags,
        0,
        length_high,
        length_low,
    ];
    if let Some(subnet) = opt.subnet {
        let length = subnet.write(scope, rest)?;
        rest = rest.get_mut(length..)?;
    }
    if let Some(given) = opt.cookie {
        let [code_high, code_low] = cookie::CODE.to_be_bytes();
        let (head, cookie) = rest.split_first_chunk_mut::<4>()?;
        *head = [code_high, code_low, 0, given.cookie.len() as u8];
        cookie.copy_from_slice(&given.cookie);
    }
    Some(())
}

#[cfg(test)]
mod tests;
