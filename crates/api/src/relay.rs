//! The way of a request: who calls, what is asked, where it goes, and what comes back.

mod admission;
mod in_flight;
mod inspector;
mod progress;
mod read;
mod refusal;
mod stream;
mod whole;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderName, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use sluice_accounting::crash;
use sluice_accounting::journal::AttemptStart;
use sluice_domain::id::RequestId;
use sluice_domain::key::ProxyKey;
use sluice_domain::quota::Payer;
use sluice_domain::record::{Caller, OpenRequest};
use sluice_domain::route::{Endpoint, Protocol};
use sluice_domain::upstream::ProviderKind;
use sluice_domain::usage::TokenUsage;
use sluice_protocol::normal::Identity;
use sluice_protocol::request::{
    Changes, MaxOutput, MaxOutputMember, Outline, OutlineError, outline, rewrite,
};
use sluice_upstream_pool::{Call, DispatchError, RoutePlan, TargetInfo, UpstreamAnswer};

use crate::app::Worker;
use crate::auth::credential::credential;
use crate::body::AnswerBody;
use crate::error::{ApiError, Code};
use crate::server::RequestContext;
use crate::source_ip::source_ip;
use crate::windows::Asked;

use self::admission::{Admission, not_admitted};
use self::in_flight::{InFlight, SideNotes};
pub(crate) use self::progress::Board;
use self::read::read_body;
pub(crate) use self::stream::EventStream;

/// Tells that the answer was limited to what the quota allows.
pub(crate) const MAX_OUTPUT_TOKENS: HeaderName =
    HeaderName::from_static("x-sluice-max-output-tokens");
/// Names the upstream that alone is to serve a request.
const UPSTREAM: &str = "x-sluice-upstream";
/// Tells how often upstreams were asked.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-sluice-attempts");
/// Most of a `user-agent` that is recorded, in bytes.
const MAX_USER_AGENT: usize = 200;

/// Relays one request.
///
/// # Errors
/// What the client is answered instead.
pub(crate) async fn relay(
    worker: Arc<Worker>,
    endpoint: Endpoint,
    context: RequestContext,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, ApiError> {
    let app = Arc::clone(&worker.app);
    let now = context.now;
    let (head, body) = request.into_parts();
    let ip = source_ip(
        context.peer.ip(),
        &head.headers,
        &app.config.server.trusted_proxies,
    );
    let mut windows = app.gate.enter(ip).await?;
    let grant = app.grants.find(credential(&head.headers), now).await?;
    let body = read_body(&head.headers, body, &app.config.server).await?;

    let outline = outline(&body, endpoint).map_err(|error| bad_request(&error))?;
    if !grant.key.allows_model(&outline.model) {
        return Err(model_not_found(&outline.model));
    }
    let payer = grant.payer();
    let Some(plan) = app
        .routing
        .load()
        .find_route(payer.tenant_id, &outline.model)
    else {
        return Err(model_not_found(&outline.model));
    };
    let Some(plan) = plan.speaking(endpoint.protocol()) else {
        return Err(unsupported_protocol(&outline.model, endpoint.protocol()));
    };
    let pinned = pinned(&head.headers, &grant.key, &plan)?;
    let model: Arc<str> = Arc::from(&*outline.model);
    // The name lives on in `model`; what is left of the outline are places in the body.
    let outline = Outline {
        model: Cow::Borrowed(""),
        ..outline
    };
    let streams = outline.streams && endpoint.can_stream();

    let account = app.grants.account(&grant, now).await?;
    let mut admission = Admission::new(&plan, &model, &outline, &body, endpoint);
    let asked = Asked {
        model: Some(&model),
        tokens: endpoint.is_charged().then(|| admission.token_bound()),
    };
    app.gate.admit(&mut windows, &grant, asked).await?;
    let limits = windows.shown();
    let open = OpenRequest {
        request_id: context.request_id,
        payer,
        period: account.period().month,
        local_day: account.local_day(now),
        started_at: now,
        endpoint,
        streams,
        requested_model: Arc::clone(&model),
        hold: admission.terms(),
        caller: Caller {
            ip: Some(ip),
            user_agent: user_agent(&head.headers),
        },
    };
    let hold = admission
        .admit(&worker, &account, open, &body)
        .await
        .map_err(|refusal| not_admitted(refusal, &account))?;

    let side = Arc::<SideNotes>::default();
    let mut in_flight = InFlight::new(
        Arc::clone(&app),
        hold,
        context.started,
        body.clone(),
        Arc::clone(&side),
        windows,
    );
    if !endpoint.is_charged() {
        in_flight.usage = Some(TokenUsage::default());
    }
    let notes = Arc::clone(&side);
    let call = RelayCall {
        worker,
        request_id: context.request_id,
        max_output: admission.max_output(),
        payer,
        token_bound: admission.token_bound(),
        pinned,
        plan,
        endpoint,
        is_beta: head.uri.query().is_some_and(is_beta),
        streams,
        model,
        outline,
        body,
        headers: head.headers,
        side,
    };
    let max_output = call.max_output;
    let answer = if streams {
        stream::relay(call, in_flight).await
    } else {
        whole::relay(call, in_flight).await
    };
    // A stream whose head left while its first event was waited for has none yet.
    let attempts = notes.attempts();
    let mut response = answer.map_err(|error| error.attempts(attempts))?;
    if attempts > 0 {
        response
            .headers_mut()
            .insert(ATTEMPTS, HeaderValue::from(attempts));
    }
    if let Some(tokens) = max_output {
        response
            .headers_mut()
            .insert(MAX_OUTPUT_TOKENS, HeaderValue::from(tokens));
    }
    if let Some(limits) = limits {
        limits.write(endpoint.protocol(), app.now(), response.headers_mut());
    }
    Ok(response)
}

/// One request on its way to the pool, with everything that it needs to run on its own.
struct RelayCall {
    worker: Arc<Worker>,
    request_id: RequestId,
    /// Most tokens of each answer, where the quota allows no more.
    max_output: Option<i64>,
    payer: Payer,
    /// The bound of its tokens, for limits of upstreams.
    token_bound: u64,
    /// The name of the upstream that alone is to serve it.
    pinned: Option<Box<str>>,
    plan: Arc<RoutePlan>,
    endpoint: Endpoint,
    is_beta: bool,
    streams: bool,
    model: Arc<str>,
    outline: Outline<'static>,
    body: Bytes,
    headers: HeaderMap,
    side: Arc<SideNotes>,
}

impl RelayCall {
    /// Whether the client asked for the usage event of a stream.
    fn wants_usage(&self) -> bool {
        self.outline
            .stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage)
    }

    fn max_answer_bytes(&self) -> usize {
        self.worker.app.config.relay.max_answer_bytes
    }

    /// Notes an attempt before anything of it is sent.
    fn begin_attempt(&self, target: &TargetInfo<'_>) {
        let now = self.worker.app.now();
        self.side.attempt_begins(target, now);
        crash::point("attempt.begun");
        self.worker.lane.attempt(&AttemptStart {
            request_id: self.request_id,
            n: target.attempt,
            upstream_id: target.upstream_id,
            upstream_key_id: target.upstream_key_id,
            upstream_model: Arc::clone(target.upstream_model),
            started_at: now,
        });
    }

    async fn dispatch(&self) -> Result<UpstreamAnswer, Box<DispatchError>> {
        let app = &self.worker.app;
        let has_stream_options = self.endpoint.protocol() == Protocol::OpenAi;
        let render = |target: &TargetInfo<'_>| {
            if !target.is_repeated {
                self.begin_attempt(target);
            }
            let changes = Changes {
                model: (**target.upstream_model != *self.model).then_some(&**target.upstream_model),
                ask_for_usage: self.streams && has_stream_options && target.takes_stream_options,
                no_stream_options: has_stream_options && !target.takes_stream_options,
                // OpenAI pads every event otherwise; other servers may not know the option.
                no_obfuscation: self.streams && target.kind == ProviderKind::OpenAi,
                max_output: self.max_output.map(|tokens| MaxOutput {
                    tokens,
                    member: max_output_member(self.endpoint, target.kind),
                }),
            };
            crash::point("dispatch.rendered");
            rewrite(&self.body, &self.outline, &changes)
        };
        let call = Call {
            endpoint: self.endpoint,
            streams: self.streams,
            is_beta: self.is_beta,
            model: &self.model,
            headers: &self.headers,
            payer: &self.payer,
            pinned: self.pinned.as_deref(),
            body: &self.body,
            token_bound: self.token_bound,
            render: &render,
            attempt_ended: &|record| {
                self.side.attempt_ended(record);
                crash::point("attempt.ended");
            },
            abandoned: &|skipped| self.side.passed_over(skipped),
            clock: &app.clock,
            max_event_bytes: app.config.relay.max_event_bytes,
            max_held_bytes: app.config.relay.max_answer_bytes,
        };
        let mut result = self.worker.dispatcher.dispatch(&self.plan, &call).await;
        let (attempts, skipped) = match &mut result {
            Ok(answer) => (answer.attempts.len(), &mut answer.skipped),
            Err(error) => (error.attempts.len(), &mut error.skipped),
        };
        self.side.dispatched(attempts, std::mem::take(skipped));
        result
    }
}

/// Returns what the answer of a server is called that needs bringing into form: servers that merely
/// speak the protocol of OpenAI deviate from what the SDKs take.
fn identity_of(
    answer: &UpstreamAnswer,
    request_id: RequestId,
    worker: &Worker,
) -> Option<Identity> {
    (answer.provider_kind == ProviderKind::Compatible).then(|| Identity {
        request_id,
        created: worker.app.now(),
        model: answer
            .upstream_model()
            .map_or_else(|| Arc::from(""), Arc::clone),
    })
}

/// Reads which upstream alone is to serve a request.
fn pinned(
    headers: &HeaderMap,
    key: &ProxyKey,
    plan: &RoutePlan,
) -> Result<Option<Box<str>>, ApiError> {
    let Some(value) = headers.get(UPSTREAM) else {
        return Ok(None);
    };
    if !key.may_pin {
        let message = format!("This key may not name its upstream: leave out `{UPSTREAM}`.");
        return Err(ApiError::new(Code::UpstreamNotSelectable, message));
    }
    match value.to_str() {
        Ok(name) if plan.leads_to(name) => Ok(Some(name.into())),
        _ => {
            let message = format!("`{UPSTREAM}` names no upstream that serves this model.");
            Err(ApiError::new(Code::InvalidValue, message).param(UPSTREAM))
        }
    }
}

fn bad_request(error: &OutlineError) -> ApiError {
    let code = match error.code() {
        Some("missing_required_parameter") => Code::MissingRequiredParameter,
        Some("invalid_type") => Code::InvalidType,
        Some("invalid_value") => Code::InvalidValue,
        _ => Code::InvalidJson,
    };
    let answer = ApiError::new(code, error.to_string());
    match error.param() {
        Some(param) => answer.param(param.to_owned()),
        None => answer,
    }
}

/// One answer for a model that does not exist and for one that the key may not use.
pub(crate) fn model_not_found(model: &str) -> ApiError {
    let shown: String = model.chars().take(200).collect();
    ApiError::new(
        Code::ModelNotFound,
        format!("The model `{shown}` does not exist or you do not have access to it."),
    )
    .param("model")
}

/// The route leads elsewhere than where the client has called.
fn unsupported_protocol(model: &str, spoken: Protocol) -> ApiError {
    let shown: String = model.chars().take(200).collect();
    let (theirs, instead) = match spoken {
        Protocol::Anthropic => ("OpenAI", "/v1/chat/completions"),
        Protocol::OpenAi => ("Anthropic", "/v1/messages"),
    };
    ApiError::new(
        Code::UnsupportedProtocol,
        format!(
            "The model `{shown}` is served by providers of the {theirs} protocol only, and requests are not \
             converted. Call {instead} for it, or ask the administrator for a route of another model."
        ),
    )
    .param("model")
}

/// Returns whether a query asks for the beta form of an endpoint of the Anthropic API.
fn is_beta(query: &str) -> bool {
    query.split('&').any(|pair| pair == "beta=true")
}

/// The member that limits the output where the client has set none.
fn max_output_member(endpoint: Endpoint, kind: ProviderKind) -> MaxOutputMember {
    match (endpoint, kind) {
        (Endpoint::ChatCompletions, ProviderKind::OpenAi | ProviderKind::Azure) => {
            MaxOutputMember::MaxCompletionTokens
        }
        _ => MaxOutputMember::MaxTokens,
    }
}

fn user_agent(headers: &HeaderMap) -> Option<Arc<str>> {
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    Some(Arc::from(text.get(..MAX_USER_AGENT).unwrap_or(text)))
}
