//! The calendar: months of tenants, written ahead of time, and the partitions of the ledger.

use sluice_domain::id::TenantId;
use sluice_domain::ports::StoreError;
use sluice_domain::time::{Period, TimeZone, UnixMillis};
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::storage::Storage;

statements! {
    // Months adjoin whatever zone a tenant has had: a new one begins where the one before it ends, and
    // ends where the next begins, where there are such.
    INSERT_PERIOD = "INSERT INTO periods (tenant_id, period, starts_at_ms, ends_at_ms, state) \
        VALUES ($1, $2, \
            COALESCE((SELECT b.ends_at_ms FROM periods b WHERE b.tenant_id = $1 AND b.period = $5), $3), \
            COALESCE((SELECT a.starts_at_ms FROM periods a WHERE a.tenant_id = $1 AND a.period = $6), $4), \
            'open') ON CONFLICT DO NOTHING";
    // Tenants that lack one of the months that contain the time or follow it.
    LIST_WITHOUT_PERIODS = "SELECT t.tenant_id, t.time_zone FROM tenants t \
        WHERE t.tenant_id > $1 AND t.state <> 'deleted' AND \
            (SELECT COUNT(*) FROM periods p WHERE p.tenant_id = t.tenant_id AND p.ends_at_ms > $2) < 2 \
        ORDER BY t.tenant_id LIMIT $3";
    FIND_TIME_ZONE = "SELECT time_zone FROM tenants WHERE tenant_id = $1";
}

/// Tenants whose months are written in one transaction.
const TENANTS_PER_TRANSACTION: i64 = 500;

/// What was missing in the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CalendarReport {
    /// Tenants that lacked this month or the next.
    pub tenants: usize,
    /// Partitions that were made; always zero on SQLite.
    pub partitions: i32,
}

/// Returns the month that contains the time and the one after it.
pub(crate) fn this_and_next(zone: &TimeZone, now: UnixMillis) -> [Period; 2] {
    let this = zone.period_of(now);
    [this, zone.period(this.month.next())]
}

/// Reads a stored zone.
pub(crate) fn parse_zone(tenant: Uuid, name: &str) -> Result<TimeZone, StoreError> {
    name.parse()
        .map_err(|_bad| corrupt("tenants", "time_zone", TenantId::from_uuid(tenant)))
}

impl Storage {
    /// Makes what is missing of this month and the next for all tenants, and on PostgreSQL the
    /// partitions of this month (in UTC) and the next two. To be called at the start and hourly.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated: what was made is kept.
    pub async fn ensure_calendar(&self, now: UnixMillis) -> Result<CalendarReport, StoreError> {
        let mut report = CalendarReport {
            tenants: 0,
            partitions: self.make_partitions(now).await?,
        };
        let mut after = Uuid::nil();
        while let Some((last, count)) = self.fill_periods(after, now).await? {
            report.tenants += count;
            after = last;
        }
        Ok(report)
    }

    async fn make_partitions(&self, now: UnixMillis) -> Result<i32, StoreError> {
        in_transaction!(self, ensure_partitions(now))
    }

    async fn fill_periods(
        &self,
        after: Uuid,
        now: UnixMillis,
    ) -> Result<Option<(Uuid, usize)>, StoreError> {
        in_transaction!(self, fill_periods(after, now))
    }
}

on_both! {
    pub(crate) async fn insert_period(
        &mut self,
        tenant: TenantId,
        period: Period,
    ) -> Result<(), Failure> {
        sql!(
            INSERT_PERIOD,
            tenant.as_uuid(),
            period.month.as_number(),
            period.starts_at.0,
            period.ends_at.0,
            period.month.previous().as_number(),
            period.month.next().as_number(),
        )
        .execute(&mut *self.conn)
        .await?;
        Ok(())
    }

    /// Returns the zone of a tenant, UTC when there is no such tenant: the ledger outlives
    /// configuration.
    pub(crate) async fn time_zone_of(&mut self, tenant: Uuid) -> Result<TimeZone, Failure> {
        let name: Option<String> =
            sql_scalar!(FIND_TIME_ZONE, tenant).fetch_optional(&mut *self.conn).await?;
        match name {
            Some(name) => Ok(parse_zone(tenant, &name)?),
            None => Ok(TimeZone::utc()),
        }
    }

    async fn fill_periods(
        &mut self,
        after: Uuid,
        now: UnixMillis,
    ) -> Result<Option<(Uuid, usize)>, Failure> {
        let tenants: Vec<(Uuid, String)> =
            sql_as!(LIST_WITHOUT_PERIODS, after, now.0, TENANTS_PER_TRANSACTION)
                .fetch_all(&mut *self.conn)
                .await?;
        for (tenant, zone) in &tenants {
            for period in this_and_next(&parse_zone(*tenant, zone)?, now) {
                self.insert_period(TenantId::from_uuid(*tenant), period).await?;
            }
        }
        Ok(tenants.last().map(|(last, _)| (*last, tenants.len())))
    }
}
