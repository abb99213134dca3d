//! DNS cookies (RFC 7873) in the interoperable form of RFC 9018: every name server with the same secret knows the cookies
//! of the others. A client that shows a good one owns its address, so its replies are not limited.

use std::net::IpAddr;

/// Code of the option.
pub(crate) const CODE: u16 = 10;
/// Length of the option in a reply, with its code and length.
pub(crate) const REPLY_BYTES: usize = 4 + COOKIE_BYTES;
/// Both halves.
const COOKIE_BYTES: usize = 24;
/// The version of the server's half, followed by three bytes that are reserved.
const VERSION: [u8; 4] = [1, 0, 0, 0];
/// Age from which a cookie is not good any more, in seconds (RFC 9018 §4.3).
const AGE_MAX_S: u32 = 3600;
/// Age from which a client gets a new one.
const RENEW_AFTER_S: u32 = 1800;
/// Difference of two servers' clocks that is forgiven.
const AHEAD_MAX_S: u32 = 300;

/// The secret of all name servers of a zone.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The cookie of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    /// Both halves.
    pub(crate) cookie: [u8; COOKIE_BYTES],
    /// True if the query showed a good one.
    pub(crate) is_good: bool,
}

impl Secret {
    /// The cookie for a client that showed `shown`: its own half, and the server's half if it has one. `now_s` is the time
    /// in seconds since 1970. `None` if the length is wrong (RFC 7873 §5.2.2).
    pub(crate) fn give(&self, shown: &[u8], client: IpAddr, now_s: u32) -> Option<Given> {
        if !matches!(shown.len(), 8 | 16..=40) {
            return None;
        }
        let theirs: &[u8; 8] = shown.first_chunk()?;
        if let (COOKIE_BYTES, Some(time)) = (shown.len(), shown.get(12..16).and_then(<[u8]>::first_chunk)) {
            let made_s = u32::from_be_bytes(*time);
            // Serial number arithmetic (RFC 1982), as the RFC asks for.
            let age = now_s.wrapping_sub(made_s);
            let is_fresh = age < AGE_MAX_S || made_s.wrapping_sub(now_s) <= AHEAD_MAX_S;
            if is_fresh && shown == self.cookie(theirs, client, made_s) {
                let keeps = age < RENEW_AFTER_S;
                return Some(Given {
                    cookie: self.cookie(theirs, client, if keeps { made_s } else { now_s }),
                    is_good: true,
                });
            }
        }
        Some(Given {
            cookie: self.cookie(theirs, client, now_s),
            is_good: false,
        })
    }

    fn cookie(&self, theirs: &[u8; 8], client: IpAddr, made_s: u32) -> [u8; COOKIE_BYTES] {
        let mut cookie = [0; COOKIE_BYTES];
        cookie[..8].copy_from_slice(theirs);
        cookie[8..12].copy_from_slice(&VERSION);
        cookie[12..16].copy_from_slice(&made_s.to_be_bytes());
        let mut hashed = [0; 32];
        hashed[..16].copy_from_slice(&cookie[..16]);
        let length = match client.to_canonical() {
            IpAddr::V4(v4) => {
                hashed[16..20].copy_from_slice(&v4.octets());
                20
            }
            IpAddr::V6(v6) => {
                hashed[16..].copy_from_slice(&v6.octets());
                32
            }
        };
        let hash = siphash_2_4(&self.0, &hashed[..length]);
        cookie[16..].copy_from_slice(&hash.to_le_bytes());
        cookie
    }
}

/// SipHash-2-4 (Aumasson and Bernstein 2012). The standard library has the faster SipHash-1-3 only.
pub(crate) fn siphash_2_4(key: &[u8; 16], message: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut blocks = message.chunks_exact(8);
    let compress = |v: &mut [u64; 4], block: u64| {
        v[3] ^= block;
        round(v);
        round(v);
        v[0] ^= block;
    };
    for block in &mut blocks {
        compress(&mut v, word(block));
    }
    compress(&mut v, word(blocks.remainder()) | (message.len() as u64) << 56);
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        }
        bytes
    }

    /// The vector of the paper's appendix A: key and message are 0, 1, 2, …
    #[test]
    fn the_hash_is_that_of_its_authors() {
        let key: [u8; 16] = std::array::from_fn(|byte| byte as u8);
        let message: [u8; 15] = std::array::from_fn(|byte| byte as u8);
        assert_eq!(siphash_2_4(&key, &message), 0xa129_ca61_49be_45e5);
    }

    /// RFC 9018 appendix A.1: other implementations with this secret give this cookie.
    #[test]
    fn a_cookie_is_the_one_that_the_rfc_shows() {
        let secret = Secret(bytes("e5e973e5a6b2a43f48e7dc849e37bfcf"));
        let client: IpAddr = "198.51.100.100".parse().unwrap();
        let theirs: [u8; 8] = bytes("2464c4abcf10c957");
        let given = secret.give(&theirs, client, 1_559_731_985).unwrap();
        let expected: [u8; 24] = bytes("2464c4abcf10c957010000005cf79f111f8130c3eee29480");
        assert_eq!((given.cookie, given.is_good), (expected, false));
        // Shown to another server with the same secret, it is good.
        let again = secret.give(&expected, client, 1_559_732_000).unwrap();
        assert_eq!((again.cookie, again.is_good), (expected, true));
    }

    #[test]
    fn a_cookie_is_good_for_an_hour_for_its_client_alone() {
        let secret = Secret([7; 16]);
        let (client, other): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let cookie = secret.give(&[1; 8], client, 10_000).unwrap().cookie;
        let shown = |client, now_s| secret.give(&cookie, client, now_s).unwrap();
        for (client, now_s, is_good) in [
            (client, 10_000, true),
            (client, 13_599, true),
            (client, 13_600, false),
            (client, 9_700, true),
            (client, 9_699, false),
            (other, 10_000, false),
        ] {
            assert_eq!(shown(client, now_s).is_good, is_good, "{client} at {now_s}");
        }
        assert_eq!(shown(client, 11_000).cookie, cookie, "a young cookie stays");
        assert_ne!(
            shown(client, 12_000).cookie,
            cookie,
            "an old one is renewed while it is good"
        );
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(secret.give(&[1; 41][..length], client, 0), None, "{length} bytes");
        }
        // A server's half of another form is no error: the client gets ours.
        assert!(!secret.give(&[1; 40], client, 0).unwrap().is_good);
    }
}
