//! The routes, the same in all releases.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use cutover::flags::{Decisions, Flag};
use serde::{Deserialize, Serialize};
use tower_sessions::Session;

use crate::status::Status;
use crate::{Error, Flow, Orders};

/// Whether a payment uses the new flow.
pub const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);

/// The service's routes.
pub fn router<O: Orders>(orders: O) -> Router {
    Router::new()
        .route("/login", post(login))
        .route("/me", get(me))
        .route("/orders", post(create::<O>))
        .route("/orders/{id}", get(find::<O>))
        .route("/orders/{id}/payment", put(pay::<O>))
        .with_state(orders)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Error::Operation(error) => error.into_response(),
        }
    }
}

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    amount_cents: i64,
}

async fn create<O: Orders>(State(orders): State<O>, Json(order): Json<NewOrder>) -> Result<Response, Error> {
    #[derive(Serialize)]
    struct Created {
        id: i64,
        status: Status,
    }
    let id = orders.create(&order.customer, order.amount_cents).await?;
    Ok((StatusCode::CREATED, Json(Created { id, status: Status::Pending })).into_response())
}

async fn find<O: Orders>(State(orders): State<O>, Path(id): Path<i64>) -> Result<Response, Error> {
    Ok(match orders.find(id).await? {
        Some(order) => Json(order).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

#[derive(Deserialize)]
struct Payment {
    status: Status,
}

async fn pay<O: Orders>(
    State(orders): State<O>,
    decisions: Decisions,
    Path(id): Path<i64>,
    Json(payment): Json<Payment>,
) -> Result<Response, Error> {
    #[derive(Serialize)]
    struct Paid {
        id: i64,
        status: Status,
        flow: Flow,
    }
    let flow = if decisions.decide(&NEW_FLOW) { Flow::New } else { Flow::Legacy };
    let status = payment.status;
    Ok(match orders.pay(id, status, flow).await? {
        true => Json(Paid { id, status, flow }).into_response(),
        false => StatusCode::NOT_FOUND.into_response(),
    })
}

#[derive(Deserialize, Serialize)]
struct Login {
    user: String,
}

const USER: &str = "user";
const VISITS: &str = "visits";

async fn login(session: Session, Json(login): Json<Login>) -> Result<Response, StatusCode> {
    session.insert(USER, &login.user).await.map_err(session_error)?;
    Ok(Json(login).into_response())
}

async fn me(session: Session) -> Result<Response, StatusCode> {
    #[derive(Serialize)]
    struct Me {
        user: String,
        visits: u64,
    }
    let user: Option<String> = session.get(USER).await.map_err(session_error)?;
    let Some(user) = user else { return Err(StatusCode::UNAUTHORIZED) };
    let visits = session.get::<u64>(VISITS).await.map_err(session_error)?.unwrap_or(0) + 1;
    session.insert(VISITS, visits).await.map_err(session_error)?;
    Ok(Json(Me { user, visits }).into_response())
}

fn session_error(error: tower_sessions::session::Error) -> StatusCode {
    tracing::error!(%error, "session");
    StatusCode::INTERNAL_SERVER_ERROR
}
