//! [`PrivateKey`] and [`PublicKey`]: who an endpoint is to those that it speaks to under seal.
//!
//! Invariant: a private key is never shown, by `Debug` neither, and has no `Display`. Both are written as WireGuard's tools write them: 32 bytes in base64.
//! Read first: [`crate::tunnel`]; RFC 7748 (Curve25519).

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use boringtun::x25519;

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in base64.
    #[error("a key is 32 bytes in base64, 44 characters of which the last is `=`")]
    Text,
    /// A key that everybody can agree with.
    #[error("this key is of a kind that gives no secret (RFC 7748 section 6.1); make a new pair")]
    Weak,
}

/// What an endpoint keeps for itself.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

/// What the others know it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(x25519::PublicKey);

impl PrivateKey {
    /// A key of 32 random bytes.
    pub fn new(random: [u8; 32]) -> PrivateKey {
        PrivateKey(random.into())
    }

    /// What others know it by.
    pub fn public(&self) -> PublicKey {
        PublicKey((&self.0).into())
    }

    /// The key in base64, to be kept where nobody else reads it.
    pub fn reveal(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }

    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        self.0.clone()
    }
}

impl PublicKey {
    pub(crate) fn point(&self) -> x25519::PublicKey {
        self.0
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &PrivateKey) -> bool {
        // By what is public of them, so that no time tells anything.
        self.public() == other.public()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

fn bytes(text: &str) -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 33];
    let len = STANDARD.decode_slice(text, &mut bytes).map_err(|_| KeyError::Text)?;
    bytes.get(..len).and_then(|bytes| bytes.try_into().ok()).ok_or(KeyError::Text)
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PrivateKey, KeyError> {
        Ok(PrivateKey::new(bytes(text)?))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let key = x25519::PublicKey::from(bytes(text)?);
        // Points of small order make the same secret with every key: none.
        match PrivateKey::new([1; 32]).0.diffie_hellman(&key).was_contributory() {
            true => Ok(PublicKey(key)),
            false => Err(KeyError::Weak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_wireguard_writes_them() {
        // A pair of `wg genkey` and `wg pubkey`.
        let private = "6OX2/mIVDmodmFZ9NoxWSevalt1yNJGvh6tn8Zt2OVY=";
        let key: PrivateKey = private.parse().unwrap();
        assert_eq!(key.public().to_string(), "dBosgBz2jtaRs2ojKjJV7EUsP91WKuyBbDnRmkv3pQY=");
        assert_eq!(key.reveal(), private);
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert!(!format!("{key:?}").contains(private), "{key:?}");
    }

    #[test]
    fn what_is_no_key() {
        let texts =
            ["", "abc", "sNuo7r2Ehqz2wjLbfPRQA3F0EZd94bLMQfy5pWgO1mY", "sNuo7r2Ehqz2wjLbfPRQA3F0EZd94bLMQfy5pWgO1mYA"];
        for text in texts {
            assert_eq!(text.parse::<PrivateKey>().map(|_| ()), Err(KeyError::Text), "{text}");
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Text), "{text}");
        }
        let zero = STANDARD.encode([0; 32]);
        assert_eq!(zero.parse::<PublicKey>(), Err(KeyError::Weak));
    }
}
