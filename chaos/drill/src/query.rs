//! One question to a name server, as a person asks it: everything that the reply says, and no cache in between.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RecordType,
        rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Longest wait for each reply.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Largest datagram that is taken, in bytes (RFC 9715).
const DATAGRAM_BYTES_MAX: u16 = 1232;

/// A question.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The name server.
    pub server: SocketAddr,
    /// The name.
    pub name: String,
    /// The type, as `dig` writes it.
    pub kind: String,
    /// The network of a client for whom to ask, as a resolver tells it (RFC 7871).
    pub subnet: Option<(IpAddr, u8)>,
}

/// The content of the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The response code, such as NOERROR.
    pub code: String,
    /// The records of the answer, or the SOA behind a negative one: name, TTL, type and contents.
    pub records: Vec<String>,
    /// Length of the network for which the answer holds, if the question told one.
    pub scope: Option<u8>,
    /// The name of the server (RFC 5001).
    pub node: Option<String>,
    /// True if the answer came over TCP, because it was too long for a datagram.
    pub over_tcp: bool,
    /// Time from question to reply.
    pub took: Duration,
}

/// Asks one question.
pub async fn query(asked: &Asked) -> io::Result<Said> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let name = Name::from_ascii(format!("{}.", asked.name.trim_end_matches('.')))
        .map_err(|error| invalid(format!("\"{}\" is no name: {error}", asked.name)))?;
    let kind: RecordType = asked
        .kind
        .to_ascii_uppercase()
        .parse()
        .map_err(|_| invalid(format!("\"{}\" is no type of record", asked.kind)))?;
    // Another one each time, so that a late reply to an earlier question is not taken for this one's.
    let id = RandomState::new().hash_one(0) as u16;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_BYTES_MAX);
    edns.options_mut()
        .insert(EdnsOption::Unknown(EdnsCode::NSID.into(), Vec::new()));
    if let Some((address, length)) = asked.subnet {
        edns.options_mut()
            .insert(EdnsOption::Subnet(ClientSubnet::new(address, length, 0)));
    }
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;

    let began = Instant::now();
    let mut reply = over_udp(asked.server, &bytes).await?;
    let over_tcp = reply.metadata.truncation;
    if over_tcp {
        reply = over_tcp_too(asked.server, &bytes).await?;
    }
    Ok(said(&reply, over_tcp, began.elapsed()))
}

fn said(reply: &Message, over_tcp: bool, took: Duration) -> Said {
    let option = |code| reply.edns.as_ref().and_then(|edns| edns.option(code));
    let code = match reply.metadata.response_code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        other => format!("{other:?}").to_uppercase(),
    };
    let records = if reply.answers.is_empty() {
        &reply.authorities
    } else {
        &reply.answers
    };
    Said {
        code,
        records: records
            .iter()
            .map(|record| {
                format!(
                    "{} {} {} {}",
                    record.name,
                    record.ttl,
                    record.record_type(),
                    record.data
                )
            })
            .collect(),
        scope: match option(EdnsCode::Subnet) {
            Some(EdnsOption::Subnet(subnet)) => Some(subnet.scope_prefix()),
            _ => None,
        },
        node: match option(EdnsCode::NSID) {
            Some(EdnsOption::NSID(node)) => Some(String::from_utf8_lossy(node.as_ref()).into_owned()),
            _ => None,
        },
        over_tcp,
        took,
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut reply = [0; DATAGRAM_BYTES_MAX as usize];
    let length = timeout(TIMEOUT, socket.recv(&mut reply)).await??;
    read(question, &reply[..length])
}

async fn over_tcp_too(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes()[..], question].concat())
            .await?;
        let mut reply = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut reply).await?;
        read(question, &reply)
    };
    timeout(TIMEOUT, exchange).await?
}

fn read(question: &[u8], reply: &[u8]) -> io::Result<Message> {
    let message = Message::from_vec(reply).map_err(io::Error::other)?;
    if reply.get(..2) == question.get(..2) {
        Ok(message)
    } else {
        Err(io::Error::other("the reply is to another question"))
    }
}
