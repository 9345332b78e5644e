//! What all rows must hold after each phase.

use std::collections::BTreeMap;

use cutover::migration::Phase;
use sqlx::Row as _;

use crate::Outcome;
use crate::base::lock;
use crate::damage::Kind;
use crate::world::World;

/// Compares all rows of both sides with what is known, while no writer is in the middle of anything.
pub(crate) async fn judge(world: &World, wish: &str) -> Outcome {
    let _quiet = world.quiet.write().await;
    let (phase, _) = world.phase().await?;
    let row = sqlx::query("select old_complete, new_complete from cutover.migrations where name = 'subject'")
        .fetch_one(&world.control)
        .await?;
    let (old_complete, new_complete): (bool, bool) = (row.get(0), row.get(1));
    let numbers: Vec<usize> = lock(&world.rows).keys().copied().collect();
    let keys = world.key_texts(&numbers).await?;
    if phase >= Phase::Verify {
        if world.shape.rust_pair.is_none() && !lock(&world.stale).is_empty() {
            world.wait_for_repairs().await?;
        }
        lock(&world.stale).clear();
    }
    let stale: Vec<usize> = lock(&world.stale).iter().copied().collect();
    let stale = world.key_texts(&stale).await?;
    let has_old = phase != Phase::Contract || world.shape.has_part;
    let [old_columns, new_columns] = world.shape.columns();
    let old = if has_old { world.all("subject", old_columns).await? } else { BTreeMap::new() };
    let has_new = !matches!(phase, Phase::Off);
    let new = if has_new { world.all(&world.shape.new_rows(), new_columns).await? } else { BTreeMap::new() };
    let mut rows = lock(&world.rows).clone();
    let old_leads = phase < Phase::Switch;
    let leading = if old_leads { &old } else { &new };
    for key in leading.keys().filter(|key| !keys.contains_key(*key)) {
        world.fail(Kind::Orphan, format!("at {wish}: key {key} exists and should not"));
    }
    for (key, number) in &keys {
        let Some(row) = rows.get_mut(number) else { continue };
        let (o, n) = (old.get(key), new.get(key));
        let wrong = |side: &str, found: Option<&String>, expected: &String, row: &crate::oracle::Row| {
            world.fail(
                if found.is_none() { Kind::Lost } else { Kind::Wrong },
                format!("at {wish}: {side} side of key {key} holds {found:?} instead of {expected}; {row:?}"),
            );
        };
        if !world.moves(*number) {
            if o != Some(&row.old) {
                wrong("old", o, &row.old, row);
            }
            if n.is_some() {
                let text =
                    format!("at {wish}: key {key} exists in the other table and does not move; {row:?}");
                world.fail(Kind::Orphan, text);
            }
            continue;
        }
        let values = &world.values;
        if row.is_unmappable && row.phase <= Phase::Verify && phase >= Phase::Ramp {
            let text = format!("at {wish}: key {key} holds a value that cannot be mapped; {row:?}");
            world.fail(Kind::Stale, text);
        }
        if has_old && row.old_behind && phase < Phase::Retire && old_complete {
            let keeps = values.forward_of(&row.old).as_ref() == Some(&row.new) && o == Some(&row.old);
            let is_mapped = o.is_some_and(|o| {
                values.back_of(&row.new).as_ref() == Some(o)
                    || values.forward_of(o).as_ref() == Some(&row.new)
            });
            if !keeps && !is_mapped {
                wrong("old", o, &row.old, row);
            }
            if let Some(o) = o {
                row.old.clone_from(o);
                row.old_behind = false;
            }
        }
        let checks_old = has_old && !row.old_behind && phase < Phase::Retire;
        if checks_old && o != Some(&row.old) {
            wrong("old", o, &row.old, row);
        }
        let promises_new = has_new
            && !row.is_unmappable
            && !stale.contains_key(key)
            && (phase >= Phase::Switch || new_complete || row.new_written);
        if promises_new && n != Some(&row.new) {
            wrong("new", n, &row.new, row);
        }
        if phase == Phase::Off {
            row.new_written = false;
        }
    }
    if world.shape.is_table && new_complete && phase < Phase::Retire {
        let trailing = if old_leads { &new } else { &old };
        if old_leads || old_complete {
            let is_known = |key: &&String| keys.contains_key(*key) || stale.contains_key(*key);
            for key in trailing.keys().filter(|key| !is_known(key)) {
                let text = format!("at {wish}: key {key} exists on the other side and should not");
                world.fail(Kind::Orphan, text);
            }
        }
    }
    if world.shape.is_apart && new_complete && phase <= Phase::Retire {
        if phase >= Phase::Verify {
            world.wait_for_repairs().await?;
        }
        for key in world.rows_apart_alone().await?.iter().filter(|key| !stale.contains_key(*key)) {
            world.fail(
                Kind::Orphan,
                format!("at {wish}: key {key} of the columns' own table belongs to no row"),
            );
        }
    }
    if world.shape.constrains() && phase >= Phase::Ramp {
        let query = "select count(*) from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey) \
            where i.indrelid = to_regclass($1) and i.indisunique and i.indisvalid and not i.indisprimary and a.attname = 'new_c'";
        let found: i64 =
            sqlx::query_scalar(query).bind(world.shape.new_table()).fetch_one(&world.control).await?;
        if found != 1 {
            world.fail(
                Kind::Schema,
                format!("at {wish}: the new side has {found} unique indexes instead of one"),
            );
        }
    }
    *lock(&world.rows) = rows;
    Ok(())
}
