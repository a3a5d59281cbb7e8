//! The clock, and times as people give them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time, in seconds since 1970: that number, or a time in UTC as RFC 3339 writes it.
pub fn parse(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().or_else(|| utc(text));
    seconds.ok_or_else(|| "seconds since 1970, or YYYY-MM-DDTHH:MM:SSZ".to_owned())
}

fn utc(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = fields(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = fields(time, ':', [2, 2, 2])?;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month.checked_sub(1)?).ok()?;
    if day == 0 || day > *lengths.get(month)? || year < 1970 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: u64 = lengths.iter().take(month).sum();
    Some((((years + months + day - 1) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Three numbers of so many digits.
fn fields(text: &str, between: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut numbers = [0; 3];
    let mut parts = text.split(between);
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|c| c.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn times_are_read() {
        // `date -u -d … +%s`
        for (text, seconds) in [
            ("0", 0),
            ("1796083200", 1_796_083_200),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2030-12-31T23:59:59Z", 1_924_991_999),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for text in
            ["", "-1", "now", "2026-12-01", "2026-12-01T00:00:00", "2026-12-01T00:00:00+01:00", "1969-12-31T23:59:59Z"]
                .into_iter()
                .chain(["2100-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-1-01T00:00:00Z"])
                .chain([
                    "2026-12-01T24:00:00Z",
                    "2026-12-01T00:00:60Z",
                    "+026-12-01T00:00:00Z",
                    "2026-12-01-01T00:00:00Z",
                ])
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
