//! Reads the body of a request: whole, bounded in size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::Body;
use http_body_util::BodyExt;

use crate::config::ServerConfig;
use crate::error::{ApiError, Code};

/// Most that is set aside for a body before it has arrived, whatever its length says.
const FIRST_BUFFER: usize = 64 * 1024;

/// Returns the body.
///
/// # Errors
/// 413 beyond `server.max_body_bytes`, 408 beyond `server.body_timeout_ms`, 415 when it is
/// compressed, 400 when it ends early.
pub(crate) async fn read_body<B>(
    headers: &HeaderMap,
    body: B,
    config: &ServerConfig,
) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::new(
            Code::UnsupportedEncoding,
            "Compressed request bodies are not supported. Send the body without `content-encoding`.",
        ));
    }
    // What `content-length` says; it has been read once already.
    let announced = body
        .size_hint()
        .exact()
        .map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced.is_some_and(|length| length > config.max_body_bytes) {
        return Err(too_large(config.max_body_bytes));
    }
    // Most bodies came with their head: nothing to wait for, nothing to time.
    let mut body = body;
    let mut first = None;
    if let Some(Some(Ok(frame))) = body.frame().now_or_never()
        && let Ok(data) = frame.into_data()
    {
        if data.len() > config.max_body_bytes {
            return Err(too_large(config.max_body_bytes));
        }
        if body.is_end_stream() {
            return Ok(data);
        }
        first = Some(data);
    }
    let reading = collect(first, body, announced.unwrap_or(0), config.max_body_bytes);
    match Box::pin(tokio::time::timeout(config.body_timeout, reading)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(too_slow(config.body_timeout)),
    }
}

async fn collect<B>(
    mut first: Option<Bytes>,
    mut body: B,
    announced: usize,
    limit: usize,
) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut rest = BytesMut::new();
    let mut length = first.as_ref().map_or(0, Bytes::len);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::new(
                Code::InvalidJson,
                "The request body ended before it was complete.",
            )
            .cause(error)
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        if length > limit {
            return Err(too_large(limit));
        }
        // A body that comes in one piece is used as it came.
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            None => rest.extend_from_slice(&data),
            Some(head) => {
                rest.reserve(
                    announced
                        .min(limit)
                        .min(FIRST_BUFFER)
                        .max(head.len() + data.len()),
                );
                rest.extend_from_slice(&head);
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        Code::BodyTooLarge,
        format!("The request body is larger than {limit} bytes."),
    )
}

fn too_slow(limit: Duration) -> ApiError {
    ApiError::new(
        Code::BodyTimeout,
        format!(
            "The request body did not arrive within {} seconds.",
            limit.as_secs().max(1)
        ),
    )
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::config::Config;

    fn config() -> ServerConfig {
        ServerConfig {
            max_body_bytes: 10,
            ..Config::default().server
        }
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_whatever_its_length_says() {
        let error = read_body(&HeaderMap::new(), Body::from("12345678901"), &config())
            .await
            .unwrap_err();
        assert_eq!(error.code.as_deref(), Some("request_too_large"));
        let body = read_body(&HeaderMap::new(), Body::from("1234567890"), &config())
            .await
            .unwrap();
        assert_eq!(body, "1234567890");
    }

    #[tokio::test]
    async fn pieces_are_joined_in_order() {
        let pieces = ["12", "34", "56"].map(|p| Ok::<_, std::io::Error>(Bytes::from(p)));
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        assert_eq!(
            read_body(&HeaderMap::new(), body, &config()).await.unwrap(),
            "123456"
        );
    }
}
