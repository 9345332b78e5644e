//! Two builds that share the sessions of one Redis.

use cutover::session::{PreserveUnknown, RedisStore};
use cutover_testkit::Redis;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_sessions::Session;

use super::{put, raw, store};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OldCart {
    pub(crate) items: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewCart {
    pub(crate) items: u32,
    pub(crate) coupon: Option<String>,
}

#[tokio::test]
async fn an_older_build_keeps_fields_of_a_newer_one() {
    let redis = Redis::start().await.unwrap();
    let (newer, older) = (store(&redis), store(&redis));
    let session = |id, store: &RedisStore| Session::new(id, store.clone().into(), None);

    // Build N writes a field, a key, and a new field of the record.
    let at_n = session(None, &newer);
    let cart = NewCart { items: 1, coupon: Some("SPRING".into()) };
    at_n.insert("cart", PreserveUnknown::new(cart)).await.unwrap();
    at_n.insert("locale", "de").await.unwrap();
    at_n.save().await.unwrap();
    let id = at_n.id().unwrap();
    let mut stored = raw(&redis, &id).await.unwrap();
    stored["region"] = json!("eu");
    put(&redis, &id, &stored.to_string()).await;

    // Build N-1 knows neither, changes the cart and adds a key of its own.
    let at_old = session(Some(id), &older);
    let mut cart: PreserveUnknown<OldCart> = at_old.get("cart").await.unwrap().unwrap();
    cart.items += 1;
    at_old.insert("cart", cart).await.unwrap();
    at_old.insert("theme", "dark").await.unwrap();
    at_old.save().await.unwrap();

    // Build N finds everything.
    let at_n = session(Some(id), &newer);
    let cart: PreserveUnknown<NewCart> = at_n.get("cart").await.unwrap().unwrap();
    assert_eq!((cart.items, cart.coupon.as_deref()), (2, Some("SPRING")));
    assert_eq!(at_n.get("locale").await.unwrap(), Some("de".to_owned()));
    assert_eq!(at_n.get("theme").await.unwrap(), Some("dark".to_owned()));
    assert_eq!(raw(&redis, &id).await.unwrap()["region"], "eu");
}

/// The three builds that rename a field. Each runs beside the one before it.
#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
}

#[derive(Serialize, Deserialize)]
struct NamedTwice {
    name: String,
    full_name: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Renamed {
    full_name: Option<String>,
}

#[tokio::test]
async fn fields_can_be_removed_and_renamed_between_builds() {
    let redis = Redis::start().await.unwrap();
    let store = store(&redis);
    let session = |id| Session::new(id, store.clone().into(), None);
    let first = session(None);
    first
        .insert("cart", PreserveUnknown::new(NewCart { items: 1, coupon: Some("SPRING".into()) }))
        .await
        .unwrap();
    first.insert("who", PreserveUnknown::new(Named { name: "Ann".into() })).await.unwrap();
    first.save().await.unwrap();
    let id = first.id();

    // The build that removed `coupon` and writes both names of the field.
    let second = session(id);
    let mut cart: PreserveUnknown<OldCart> = second.get("cart").await.unwrap().unwrap();
    cart.items = 5;
    second.insert("cart", cart).await.unwrap();
    let mut who: PreserveUnknown<NamedTwice> = second.get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Ann", None));
    (who.name, who.full_name) = ("Bea".into(), Some("Bea".into()));
    second.insert("who", who).await.unwrap();
    second.save().await.unwrap();

    // The first build again: it still has its field, and the new value under the old name.
    let first = session(id);
    let cart: PreserveUnknown<NewCart> = first.get("cart").await.unwrap().unwrap();
    assert_eq!((cart.items, cart.coupon.as_deref()), (5, Some("SPRING")));
    let mut who: PreserveUnknown<Named> = first.get("who").await.unwrap().unwrap();
    assert_eq!(who.name, "Bea");
    who.name = "Cid".into();
    first.insert("who", who).await.unwrap();
    first.save().await.unwrap();

    // The second build sees that an older build changed only the old name.
    let second = session(id);
    let mut who: PreserveUnknown<NamedTwice> = second.get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Cid", Some("Bea")));
    who.full_name = Some(who.name.clone());
    second.insert("who", who).await.unwrap();
    second.save().await.unwrap();

    // The third build knows only the new name, and the second one beside it loses nothing.
    let third = session(id);
    let mut who: PreserveUnknown<Renamed> = third.get("who").await.unwrap().unwrap();
    assert_eq!(who.full_name.as_deref(), Some("Cid"));
    who.full_name = Some("Dan".into());
    third.insert("who", who).await.unwrap();
    third.save().await.unwrap();
    let who: PreserveUnknown<NamedTwice> = session(id).get("who").await.unwrap().unwrap();
    assert_eq!((who.name.as_str(), who.full_name.as_deref()), ("Cid", Some("Dan")));
}
