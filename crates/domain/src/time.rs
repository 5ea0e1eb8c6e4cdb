//! Instants, months and days of a tenant's calendar.

use std::fmt;
use std::str::FromStr;

use jiff::civil;
use jiff::tz;

/// Milliseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Returns the milliseconds from `earlier` to `self`, zero when the clock went back.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0).max(0)
    }

    /// Returns whole seconds since the epoch, as the OpenAI wire has them.
    pub fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Returns the RFC 3339 form in UTC, for people and admin surfaces.
    pub fn to_rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0)
            .map_or_else(|_| "invalid".to_owned(), |t| t.to_string())
    }
}

/// Reads an RFC 3339 instant.
///
/// # Errors
/// A message that says what was expected.
pub fn parse_rfc3339(text: &str) -> Result<UnixMillis, String> {
    text.parse::<jiff::Timestamp>()
        .map(|t| UnixMillis(t.as_millisecond()))
        .map_err(|_bad| format!("`{text}` is not a time such as 2026-12-31T23:59:59Z"))
}

/// A calendar month in a tenant's time zone; part of a counter's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(i32);

impl Month {
    /// Builds a month from its number form, `YYYYMM`.
    pub fn from_number(yyyymm: i32) -> Option<Self> {
        let (year, month) = (yyyymm.div_euclid(100), yyyymm.rem_euclid(100));
        ((1970..=9998).contains(&year) && (1..=12).contains(&month)).then_some(Self(yyyymm))
    }

    /// Returns the number form, `YYYYMM`.
    pub fn as_number(self) -> i32 {
        self.0
    }

    /// Returns the month after this one.
    #[must_use]
    pub fn next(self) -> Self {
        if self.0.rem_euclid(100) == 12 {
            Self(self.0 + 89)
        } else {
            Self(self.0 + 1)
        }
    }

    /// Returns the month before this one.
    #[must_use]
    pub fn previous(self) -> Self {
        if self.0.rem_euclid(100) == 1 {
            Self(self.0 - 89)
        } else {
            Self(self.0 - 1)
        }
    }

    fn first_day(self) -> Option<civil::Date> {
        let year = i16::try_from(self.0.div_euclid(100)).ok()?;
        let month = i8::try_from(self.0.rem_euclid(100)).ok()?;
        civil::Date::new(year, month, 1).ok()
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04}-{:02}",
            self.0.div_euclid(100),
            self.0.rem_euclid(100)
        )
    }
}

/// A calendar day in a tenant's time zone, as `YYYYMMDD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalDay(pub i32);

impl fmt::Display for LocalDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, rest) = (self.0.div_euclid(10_000), self.0.rem_euclid(10_000));
        write!(f, "{year:04}-{:02}-{:02}", rest / 100, rest % 100)
    }
}

/// An IANA time zone.
#[derive(Clone, PartialEq, Eq)]
pub struct TimeZone {
    name: String,
    zone: tz::TimeZone,
}

/// The name is not in the IANA database that this binary carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IANA time zone such as `Europe/Berlin` or `UTC`")]
pub struct UnknownTimeZone(pub String);

/// The half-open interval of one month in one time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The month.
    pub month: Month,
    /// First instant of the month.
    pub starts_at: UnixMillis,
    /// First instant after the month.
    pub ends_at: UnixMillis,
}

impl Period {
    /// Returns whether the instant lies in this period.
    pub fn contains(&self, at: UnixMillis) -> bool {
        self.starts_at <= at && at < self.ends_at
    }
}

/// The half-open interval of one local day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayBounds {
    /// The day.
    pub day: LocalDay,
    /// First instant of the day.
    pub starts_at: UnixMillis,
    /// First instant after the day.
    pub ends_at: UnixMillis,
}

impl TimeZone {
    /// Returns UTC.
    pub fn utc() -> Self {
        Self {
            name: "UTC".to_owned(),
            zone: tz::TimeZone::UTC,
        }
    }

    /// Returns the IANA name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the month that contains the instant, with its bounds.
    pub fn period_of(&self, at: UnixMillis) -> Period {
        let date = self.date_of(at);
        let number = i32::from(date.year()) * 100 + i32::from(date.month());
        self.period(Month(number))
    }

    /// Returns the bounds of a month.
    pub fn period(&self, month: Month) -> Period {
        Period {
            month,
            starts_at: self.start_of(month),
            ends_at: self.start_of(month.next()),
        }
    }

    /// Returns the local day that contains the instant, with its bounds.
    pub fn day_of(&self, at: UnixMillis) -> DayBounds {
        let date = self.date_of(at);
        let day =
            i32::from(date.year()) * 10_000 + i32::from(date.month()) * 100 + i32::from(date.day());
        DayBounds {
            day: LocalDay(day),
            starts_at: self.start_of_date(date),
            ends_at: date
                .tomorrow()
                .map_or(UnixMillis(i64::MAX), |d| self.start_of_date(d)),
        }
    }

    fn date_of(&self, at: UnixMillis) -> civil::Date {
        let instant =
            jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let date = self.zone.to_datetime(instant).date();
        // Where the clock goes back over midnight, the end of a day is shown again. A day, and the
        // month that begins with it, has begun for good.
        match date.tomorrow() {
            Ok(next) if self.start_of_date(next) <= at => next,
            _ => date,
        }
    }

    fn start_of(&self, month: Month) -> UnixMillis {
        month
            .first_day()
            .map_or(UnixMillis(i64::MAX), |d| self.start_of_date(d))
    }

    /// The first instant of a date; where midnight does not exist, the first one after the gap.
    fn start_of_date(&self, date: civil::Date) -> UnixMillis {
        date.to_zoned(self.zone.clone())
            .map_or(UnixMillis(i64::MAX), |z| {
                UnixMillis(z.timestamp().as_millisecond())
            })
    }
}

impl fmt::Debug for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimeZone({})", self.name)
    }
}

impl FromStr for TimeZone {
    type Err = UnknownTimeZone;

    fn from_str(name: &str) -> Result<Self, UnknownTimeZone> {
        match tz::db().get(name) {
            Ok(zone) => Ok(Self {
                name: name.to_owned(),
                zone,
            }),
            Err(_unknown) => Err(UnknownTimeZone(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
