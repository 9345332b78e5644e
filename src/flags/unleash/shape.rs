//! Refuses states that the engine cannot carry.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The most strategies of a flag, and constraints of one strategy, together. The engine calls itself once for each when it
/// decides a flag and when it drops a state, so that a longer list would overflow the stack, which ends the process. Unleash
/// itself allows 30 of each.
pub(super) const LONGEST: usize = 500;

/// All flags, or the events that lead to them, or one event.
#[derive(Deserialize)]
struct Part {
    events: Option<Vec<Part>>,
    features: Option<Vec<Feature>>,
    feature: Option<Feature>,
    segments: Option<Vec<Segment>>,
    segment: Option<Segment>,
}

#[derive(Deserialize)]
struct Feature {
    name: String,
    strategies: Option<Vec<Strategy>>,
}

#[derive(Deserialize)]
struct Strategy {
    constraints: Option<Vec<IgnoredAny>>,
    segments: Option<Vec<i32>>,
}

#[derive(Deserialize)]
struct Segment {
    id: i32,
    constraints: Option<Vec<IgnoredAny>>,
}

/// Why the engine cannot carry a state.
pub(super) fn check(body: &[u8]) -> Result<(), String> {
    let state: Part = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let parts: Vec<&Part> = std::iter::once(&state).chain(state.events.iter().flatten()).collect();
    let segments = parts.iter().flat_map(|part| part.segments.iter().flatten().chain(&part.segment));
    let mut sizes = HashMap::new();
    for segment in segments {
        let size = segment.constraints.as_ref().map_or(0, Vec::len);
        let largest = sizes.entry(segment.id).or_insert(0);
        *largest = size.max(*largest);
    }
    let features = parts.iter().flat_map(|part| part.features.iter().flatten().chain(&part.feature));
    for feature in features {
        let length = feature.length(&sizes);
        if length > LONGEST {
            return Err(format!(
                "flag {:?} has {length} strategies and constraints of a strategy, more than the limit of {LONGEST}; \
                 use a segment or a custom strategy instead",
                feature.name
            ));
        }
    }
    Ok(())
}

impl Feature {
    fn length(&self, segments: &HashMap<i32, usize>) -> usize {
        let strategies = || self.strategies.iter().flatten();
        strategies().count() + strategies().map(|strategy| strategy.length(segments)).max().unwrap_or(0)
    }
}

impl Strategy {
    fn length(&self, segments: &HashMap<i32, usize>) -> usize {
        let of_segments = self.segments.iter().flatten().filter_map(|id| segments.get(id));
        self.constraints.as_ref().map_or(0, Vec::len) + of_segments.sum::<usize>()
    }
}
