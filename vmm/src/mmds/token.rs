//! Sessions of version 2: the guest asks for a token first, and shows it with each request.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Most seconds that a session may last.
pub(super) const MAX_TTL: u32 = 21_600;
/// Most sessions at a time. One more ends the one that would end first.
const MAX_SESSIONS: usize = 256;
/// Bytes of a token, before they are written as text.
const TOKEN: usize = 32;

/// One session. The token itself is the guest's alone.
#[derive(Clone, Copy, Debug)]
struct Session {
    digest: [u8; 32],
    ends: Instant,
}

/// The sessions of one VM. They do not outlive the process, and a snapshot keeps none.
#[derive(Debug, Default)]
pub(super) struct Sessions(Vec<Session>);

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// A lifetime that no session has.
    #[error("A session lasts 1 to {MAX_TTL} seconds.")]
    Ttl,
    /// The host has no random numbers.
    #[error("No token can be made now.")]
    Random,
}

impl Sessions {
    /// Begins a session; gives its token.
    pub(super) fn begin(&mut self, ttl_seconds: u32, now: Instant) -> Result<String, TokenError> {
        if !(1..=MAX_TTL).contains(&ttl_seconds) {
            return Err(TokenError::Ttl);
        }
        let token = random::<TOKEN>()?.map(|byte| format!("{byte:02x}")).concat();
        let ends = now + Duration::from_secs(u64::from(ttl_seconds));
        self.0.retain(|session| session.ends > now);
        if self.0.len() >= MAX_SESSIONS
            && let Some(first) = (0..self.0.len()).min_by_key(|at| self.0.get(*at).map(|session| session.ends))
        {
            self.0.swap_remove(first);
        }
        self.0.push(Session { digest: Sha256::digest(&token).into(), ends });
        Ok(token)
    }

    /// Whether `token` is of a session that lasts. How long the answer takes says nothing of the tokens there are.
    pub(super) fn are_begun_by(&self, token: &str, now: Instant) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let found = |session: &Session| digest.ct_eq(&session.digest) & Choice::from(u8::from(session.ends > now));
        self.0.iter().fold(Choice::from(0), |any, session| any | found(session)).into()
    }
}

/// Bytes that nobody foresees.
pub(super) fn random<const N: usize>() -> Result<[u8; N], TokenError> {
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if usize::try_from(got) == Ok(N) { Ok(bytes) } else { Err(TokenError::Random) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_its_session_ends() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let token = sessions.begin(10, now).unwrap();
        assert_eq!(token.len(), 64);
        assert!(sessions.are_begun_by(&token, now));
        assert!(sessions.are_begun_by(&token, now + Duration::from_millis(9_999)));
        assert!(!sessions.are_begun_by(&token, now + Duration::from_secs(10)));
        for other in ["", "00", &token[1..], &token.to_uppercase(), &format!("{token} ")] {
            assert!(!sessions.are_begun_by(other, now), "{other}");
        }
    }

    #[test]
    fn tokens_differ() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let tokens: std::collections::BTreeSet<_> = (0..50).map(|_| sessions.begin(1, now).unwrap()).collect();
        assert_eq!(tokens.len(), 50);
    }

    #[test]
    fn lifetimes_have_bounds() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        assert_eq!(sessions.begin(0, now), Err(TokenError::Ttl));
        assert_eq!(sessions.begin(MAX_TTL + 1, now), Err(TokenError::Ttl));
        assert!(sessions.begin(1, now).is_ok() && sessions.begin(MAX_TTL, now).is_ok());
    }

    #[test]
    fn there_are_only_so_many_sessions_and_the_shortest_goes_first() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let short = sessions.begin(5, now).unwrap();
        let long = sessions.begin(MAX_TTL, now).unwrap();
        (2..MAX_SESSIONS).for_each(|_| drop(sessions.begin(100, now).unwrap()));
        assert!(sessions.are_begun_by(&short, now));
        sessions.begin(100, now).unwrap();
        assert_eq!(sessions.0.len(), MAX_SESSIONS);
        assert!(!sessions.are_begun_by(&short, now) && sessions.are_begun_by(&long, now));
        // Those that have ended make room.
        sessions.begin(1, now + Duration::from_secs(101)).unwrap();
        assert_eq!(sessions.0.len(), 2);
    }
}
