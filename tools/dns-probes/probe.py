"""Asks a name server of voice.meridian.test what resolvers and testers of protocols ask, and checks each reply.

Usage: probe.py IP PORT [--signed]. The test dns/server/tests/probes.rs runs it.
"""

import socket
import struct
import sys

import dns.dnssec
import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype

IP, PORT = sys.argv[1], int(sys.argv[2])
SIGNED = "--signed" in sys.argv
ZONE = "voice.meridian.test."
TIMEOUT = 5
passed = 0


def check(what, holds, seen=""):
    global passed
    if not holds:
        sys.exit(f"probe failed: {what}\n{seen}")
    passed += 1


def ask(name=ZONE, kind="A", tcp=False, **edns):
    query = dns.message.make_query(name, kind, **edns)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, IP, port=PORT, timeout=TIMEOUT)


def raw(message, tcp=False):
    """The bytes of the reply to any bytes, or None when there is none within a second."""
    if tcp:
        with socket.create_connection((IP, PORT), TIMEOUT) as stream:
            stream.sendall(struct.pack("!H", len(message)) + message)
            return stream.recv(4096)[2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(1)
        datagrams.sendto(message, (IP, PORT))
        try:
            return datagrams.recv(4096)
        except TimeoutError:
            return None


def option(reply, code):
    return next((it for it in reply.options if it.otype == code), None)


def soa_ttl(reply):
    return next(rrset.ttl for rrset in reply.authority if rrset.rdtype == dns.rdatatype.SOA)


def answers():
    for tcp in (False, True):
        reply = ask(tcp=tcp, use_edns=0)
        check("the service has addresses", len(reply.answer) == 1 and len(reply.answer[0]) == 2, reply)
        check("the answer is authoritative", reply.flags & dns.flags.AA, reply)
        check("there is no recursion", not reply.flags & dns.flags.RA, reply)
        check("the OPT record says 1232", reply.edns == 0 and reply.payload == 1232, reply)
    check("without EDNS there is no OPT", ask(use_edns=False).edns == -1)
    reply = ask("nobody." + ZONE)
    check("a name that does not exist", reply.rcode() == dns.rcode.NXDOMAIN, reply)
    minimum = reply.authority[0][0].minimum
    check("RFC 2308: the TTL of the SOA is its minimum", soa_ttl(reply) == minimum, reply)
    reply = ask(kind="MX")
    check("no record of the type", reply.rcode() == dns.rcode.NOERROR and not reply.answer, reply)
    check("RFC 2308: NODATA has an SOA", soa_ttl(reply) == minimum, reply)
    reply = ask("lab." + ZONE)
    check("RFC 8020: an empty non-terminal exists", reply.rcode() == dns.rcode.NOERROR and not reply.answer, reply)
    reply = ask("any.thing.lab." + ZONE)
    check("RFC 4592: a wildcard has the name that was asked for", reply.answer[0].name == dns.name.from_text("any.thing.lab." + ZONE), reply)
    check("RFC 4592: a wildcard hides no type", ask("any.lab." + ZONE, "TXT").rcode() == dns.rcode.NOERROR)
    reply = ask(kind="ANY")
    check("RFC 8482: ANY is short", [rrset.rdtype for rrset in reply.answer] == [dns.rdatatype.HINFO], reply)
    check("another zone is refused", ask("example.com.").rcode() == dns.rcode.REFUSED)
    reply = ask(kind="HTTPS")
    priorities = sorted(record.priority for record in reply.answer[0])
    check("RFC 9460: bindings have priorities", priorities and priorities[0] == 1, reply)
    check("TXT", ask("_acme-challenge." + ZONE, "TXT").answer[0][0].strings == (b"token",))
    check("CAA", ask(kind="CAA").answer[0][0].tag == b"issue")
    check("NS has glue", ask(kind="NS").additional, "")
    for kind in ("SOA", "NS", "HTTPS", "TXT", "CAA", "TYPE65280"):
        check(f"{kind} has one TTL for each set", len(ask(kind=kind, use_edns=0).answer) <= 1)


def letters():
    name = "vOiCe.MeRiDiAn.TeSt."
    query = dns.message.make_query(name, "A")
    wire = raw(query.to_wire())
    asked = b"\x05vOiCe\x08MeRiDiAn\x04TeSt\x00"
    check("RFC 4343: the question comes back in its own letters", wire[12 : 12 + len(asked)] == asked, wire)


def edns():
    reply = ask(use_edns=1)
    check("RFC 6891: BADVERS says version 0", reply.rcode() == dns.rcode.BADVERS and reply.edns == 0, reply)
    check("BADVERS has no answer", not reply.answer)
    reply = ask(use_edns=0, options=[dns.edns.GenericOption(65001, b"?")])
    check("unknown options are skipped", reply.answer and not reply.options, reply)
    query = dns.message.make_query(ZONE, "A", use_edns=0)
    query.ednsflags |= 0x4000
    reply = dns.query.udp(query, IP, port=PORT, timeout=TIMEOUT)
    check("RFC 6891: unknown flags are not repeated", reply.answer and not reply.ednsflags & 0x4000, reply)
    check("DO comes back", ask(use_edns=0, want_dnssec=True).ednsflags & dns.flags.DO)
    for payload in (0, 1, 511, 512, 1232, 65535):
        reply = ask("many." + ZONE, "AAAA", use_edns=0, payload=payload)
        check("a reply that is cut keeps its OPT", reply.edns == 0, reply)
        check("no client gets more than 1232 bytes over UDP", len(reply.to_wire()) <= 1232)
    twice = dns.message.make_query(ZONE, "A", use_edns=0).to_wire()
    twice = twice[:11] + b"\x02" + twice[12:] + twice[-11:]
    reply = dns.message.from_wire(raw(twice), ignore_trailing=True)
    check("two OPT records are FORMERR", reply.rcode() == dns.rcode.FORMERR and reply.edns == 0, reply)
    nsid = option(ask(use_edns=0, options=[dns.edns.GenericOption(3, b"")]), 3)
    check("RFC 5001: the server says its name", nsid is not None)
    reply = ask("example.com.", use_edns=0)
    check("RFC 8914: REFUSED says why", option(reply, 15).code == 20, reply)


def subnets():
    good = dns.edns.ECSOption("192.0.2.0", 24)
    told = option(ask(use_edns=0, options=[good]), 8)
    check("RFC 7871: the subnet comes back", (told.address, told.srclen, told.scopelen) == ("192.0.2.0", 24, 0), told)
    for what, data in {
        "a scope in a question": b"\0\1\x18\x18\xc0\0\2",
        "bits beyond the length": b"\0\1\x17\0\xc0\0\3",
        "too many bytes": b"\0\1\x18\0\xc0\0\2\0",
        "too few bytes": b"\0\1\x18\0\xc0\0",
        "a length of 33": b"\0\1\x21\0\xc0\0\2\1\0",
        "an unknown family": b"\0\3\0\0",
    }.items():
        query = dns.message.make_query(ZONE, "A", use_edns=0, options=[dns.edns.GenericOption(8, data)])
        reply = raw(query.to_wire())
        check(f"RFC 7871: {what} is FORMERR", reply[3] & 15 == dns.rcode.FORMERR, reply)
        check(f"{what}: FORMERR has question and OPT", reply[4:6] == b"\0\1" and reply[10:12] == b"\0\1", reply)


def cookies():
    shown = dns.edns.GenericOption(10, b"12345678")
    given = option(ask(use_edns=0, options=[shown]), 10)
    cookie = given.client + given.server
    check("RFC 9018: a cookie of version 1", len(cookie) == 24 and cookie[8:12] == b"\1\0\0\0", cookie)
    again = option(ask(use_edns=0, options=[dns.edns.GenericOption(10, cookie)]), 10)
    check("a young cookie stays", again.client + again.server == cookie)
    reply = ask("many." + ZONE, "AAAA", use_edns=0, payload=1232)
    check("without a cookie a long answer is cut", reply.flags & dns.flags.TC and not reply.answer, reply)
    reply = ask("many." + ZONE, "AAAA", use_edns=0, payload=1232, options=[dns.edns.GenericOption(10, cookie)])
    check("with a good cookie it is not", not reply.flags & dns.flags.TC and len(reply.answer[0]) == 16, reply)
    reply = ask("many." + ZONE, "AAAA", tcp=True)
    check("nor over TCP", len(reply.answer[0]) == 16, reply)


def odd_messages():
    plain = dns.message.make_query(ZONE, "A").to_wire()
    for code in (dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE, 15):
        reply = raw(plain[:2] + bytes([code << 3]) + plain[3:])
        check(f"RFC 8906: opcode {code} is NOTIMP", reply[3] & 15 == dns.rcode.NOTIMP and reply[2] >> 3 & 15 == code, reply)
    for count in (0, 2, 65535):
        reply = raw(plain[:4] + struct.pack("!H", count) + plain[6:])
        check(f"RFC 9619: {count} questions are FORMERR", reply[3] & 15 == dns.rcode.FORMERR, reply)
    check("answers get no answer", raw(plain[:2] + b"\x80" + plain[3:]) is None)
    for tcp in (False, True):
        reply = raw(plain[:-1], tcp)
        check("a cut question is FORMERR", reply[3] & 15 == dns.rcode.FORMERR, reply)
    for kind in (0, 41, 249, 250, 251, 252, 253, 254, 65535):
        wire = plain[:-4] + struct.pack("!HH", kind, 1)
        check(f"RFC 8906: type {kind} is answered", raw(wire) is not None)
    for kind in (3, 254, 255):
        wire = plain[:-2] + struct.pack("!H", kind)
        check(f"RFC 8906: class {kind} is answered", raw(wire) is not None)
    for flags in range(256):
        wire = plain[:2] + bytes([plain[2] & 0xF8 | flags & 7, flags & 0x70]) + plain[4:]
        reply = raw(wire)
        check("reserved bits do not come back", reply is not None and not reply[3] & 0x40, reply)


def streams():
    wires = [dns.message.make_query(name, "A").to_wire() for name in (ZONE, "edge-iad." + ZONE, "nobody." + ZONE)]
    with socket.create_connection((IP, PORT), TIMEOUT) as stream:
        stream.sendall(b"".join(struct.pack("!H", len(wire)) + wire for wire in wires))
        stream.settimeout(TIMEOUT)
        read = stream.makefile("rb")
        for wire in wires:
            reply = read.read(struct.unpack("!H", read.read(2))[0])
            check("RFC 7766: replies on one connection", reply[:2] == wire[:2], reply)
        for byte in struct.pack("!H", len(wires[0])) + wires[0]:
            stream.sendall(bytes([byte]))
        reply = read.read(struct.unpack("!H", read.read(2))[0])
        check("a question in single bytes", reply[:2] == wires[0][:2], reply)


COMPACT_OK = 0x4000
NXNAME = 128


def signed():
    zone = dns.name.from_text(ZONE)

    def ask_signed(name, kind, flags=dns.flags.DO, tcp=True, **rest):
        query = dns.message.make_query(name, kind, use_edns=0, want_dnssec=True, **rest)
        query.ednsflags |= flags
        send = dns.query.tcp if tcp else dns.query.udp
        return send(query, IP, port=PORT, timeout=TIMEOUT)

    reply = ask_signed(ZONE, "DNSKEY")
    keys = reply.find_rrset(reply.answer, zone, dns.rdataclass.IN, dns.rdatatype.DNSKEY)
    check("each key signs the keys", len(reply.answer) == 2 and len(reply.answer[1]) == len(keys) == 2, reply)

    def validated(reply, what):
        check(f"{what}: no AD from an authority", not reply.flags & dns.flags.AD, reply)
        sets = [it for it in reply.answer + reply.authority + reply.additional if it.rdtype != dns.rdatatype.RRSIG]
        for rrset in sets:
            section = next(it for it in (reply.answer, reply.authority, reply.additional) if rrset in it)
            rrsig = reply.find_rrset(section, rrset.name, dns.rdataclass.IN, dns.rdatatype.RRSIG, rrset.rdtype)
            check(f"{what}: RFC 4035: a signature has the TTL of its set", rrsig.ttl == rrset.ttl, reply)
            check(f"{what}: no TTL above the signed one", all(rrset.ttl <= it.original_ttl for it in rrsig), reply)
            dns.dnssec.validate(rrset, rrsig, {zone: keys})
            check(f"{what}: {rrset.name} {rrset.rdtype} validates", True)

    for name, kind in ((ZONE, "A"), (ZONE, "HTTPS"), (ZONE, "NS"), (ZONE, "ANY"), ("ns1." + ZONE, "A"), ("*.lab." + ZONE, "A")):
        validated(ask_signed(name, kind), f"{name} {kind}")
    reply = ask_signed(ZONE, "NS")
    check("addresses of name servers are signed", [it.rdtype for it in reply.additional] == [1, 46], reply)

    def denied(name, kind, types, flags=dns.flags.DO):
        reply = ask_signed(name, kind, flags)
        validated(reply, f"{name} {kind}")
        nsec = next(it for it in reply.authority if it.rdtype == dns.rdatatype.NSEC)
        check("RFC 9824: the denial has the name of the question", nsec.name == dns.name.from_text(name), reply)
        check("the next name is the one directly behind it", nsec[0].next.labels[0] == b"\0" and nsec[0].next.parent() == nsec.name, reply)
        seen = {block * 256 + at * 8 + bit for block, bits in nsec[0].windows for at, byte in enumerate(bits) for bit in range(8) if byte & 0x80 >> bit}
        check(f"{name} has the types {types}", seen == {int(dns.rdatatype.from_text(it)) for it in types} | {46, 47}, seen)
        check("RFC 9077: the denial lives as long as negative answers", nsec.ttl == soa_ttl(reply), reply)
        return reply

    apex = ["A", "NS", "SOA", "HTTPS", "SVCB", "CAA", "DNSKEY"]
    check("NODATA is NOERROR", denied(ZONE, "MX", apex).rcode() == dns.rcode.NOERROR)
    denied(ZONE, "DS", apex)
    denied("edge-iad." + ZONE, "AAAA", ["A"])
    denied("b.lab." + ZONE, "A", [])
    denied("any.thing.lab." + ZONE, "TXT", ["A"])
    nobody = "nobody." + ZONE
    check("RFC 9824: a compact denial is NOERROR", denied(nobody, "A", ["TYPE128"]).rcode() == dns.rcode.NOERROR)
    reply = denied(nobody, "A", ["TYPE128"], dns.flags.DO | COMPACT_OK)
    check("RFC 9824: with CO it is NXDOMAIN", reply.rcode() == dns.rcode.NXDOMAIN and reply.ednsflags & COMPACT_OK, reply)
    check("without DO it is NXDOMAIN without proof", ask(nobody, use_edns=0).rcode() == dns.rcode.NXDOMAIN)
    check("without DO the flag CO does not come back", not ask(nobody, use_edns=0, ednsflags=COMPACT_OK).ednsflags & COMPACT_OK)
    longest = ".".join(["x" * 62] * 3 + ["y" * (253 - 3 * 63 - len(ZONE))]) + "." + ZONE
    check("the longest name", len(dns.name.from_text(longest).to_wire()) == 255)
    reply = ask_signed(longest, "A")
    validated(reply, "the longest name")
    nsec = next(it for it in reply.authority if it.rdtype == dns.rdatatype.NSEC)
    check("its denial covers nothing else of the zone", nsec[0].next > nsec.name and nsec[0].next.is_subdomain(zone), reply)
    for flags in (dns.flags.DO, 0):
        reply = ask_signed(ZONE, "TYPE128", flags)
        check("RFC 9824: NXNAME is FORMERR and says why", reply.rcode() == dns.rcode.FORMERR and option(reply, 15).code == 30, reply)
    reply = ask_signed("edge-iad." + ZONE, "NSEC")
    check("NSEC is answered", reply.answer[0].rdtype == dns.rdatatype.NSEC and len(reply.answer) == 2, reply)
    reply = ask_signed("edge-iad." + ZONE, "RRSIG")
    check("RRSIG is short", len(reply.answer) == 1 and len(reply.answer[0]) == 1, reply)
    query = dns.message.make_query(ZONE, "A", use_edns=0, want_dnssec=True)
    query.flags |= dns.flags.CD | dns.flags.AD
    reply = dns.query.tcp(query, IP, port=PORT, timeout=TIMEOUT)
    check("CD comes back, AD does not", reply.flags & dns.flags.CD and not reply.flags & dns.flags.AD, reply)
    reply = ask_signed(nobody, "A", tcp=False)
    check("without a cookie a long denial is cut", reply.flags & dns.flags.TC and not reply.authority and reply.edns == 0, reply)
    given = option(ask(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]), 10)
    cookie = dns.edns.GenericOption(10, given.client + given.server)
    reply = ask_signed(nobody, "A", tcp=False, options=[cookie])
    check("with a good one it is not", not reply.flags & dns.flags.TC, reply)
    validated(reply, "a denial over UDP")
    for kind in ("A", "HTTPS", "SVCB", "SOA"):
        reply = ask_signed(ZONE, kind, tcp=False, options=[cookie])
        check(f"{kind} over UDP is signed", len(reply.answer) == 2 and not reply.flags & dns.flags.TC, reply)
        validated(reply, f"{kind} over UDP")
    reply = ask_signed("many." + ZONE, "AAAA", tcp=False, payload=512, options=[cookie])
    check("what is longer than the client's limit is cut", reply.flags & dns.flags.TC and not reply.answer, reply)


for probe in (answers, letters, edns, subnets, cookies, odd_messages, streams) + ((signed,) if SIGNED else ()):
    probe()
print(f"{passed} probes passed")
