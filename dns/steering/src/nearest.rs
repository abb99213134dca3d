//! The nearest edges of every place. Places and edges change with documents and not with plans, so this is computed once
//! for many plans.

use topology::Location;

/// Number of edges that are kept for a place. Plans choose from these; only a place that lost nearly all of them looks at
/// every edge again.
const KEPT: usize = 16;
/// Mean radius of the Earth in kilometres, as in [`Location::distance_km`].
const EARTH_KM: f64 = 6371.0;

/// An edge as seen from a place. The larger the cosine of the angle between the two, the nearer the edge.
pub(crate) type Seen = (u16, f64);

/// The nearest edges of every place, nearest first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nearest {
    edges: Vec<[f64; 3]>,
    places: Vec<[f64; 3]>,
    /// By place, [`Nearest::kept`] each.
    lists: Vec<Seen>,
}

impl Nearest {
    pub(crate) fn new(places: &[Location], edges: &[Location]) -> Self {
        let vectors = |all: &[Location]| all.iter().map(|location| vector(*location)).collect();
        let mut nearest = Self {
            edges: vectors(edges),
            places: vectors(places),
            lists: Vec::with_capacity(places.len() * KEPT.min(edges.len())),
        };
        let kept = nearest.kept();
        for place in 0..places.len() {
            let mut all = nearest.seen_from(place);
            if kept < all.len() {
                all.select_nth_unstable_by(kept, by_distance);
                all.truncate(kept);
            }
            all.sort_unstable_by(by_distance);
            nearest.lists.extend(all);
        }
        nearest
    }

    fn kept(&self) -> usize {
        KEPT.min(self.edges.len())
    }

    /// The nearest edges of a place, and whether these are all edges.
    pub(crate) fn of(&self, place: usize) -> (&[Seen], bool) {
        let kept = self.kept();
        (&self.lists[place * kept..][..kept], kept == self.edges.len())
    }

    /// All edges, nearest first.
    pub(crate) fn all_of(&self, place: usize) -> Vec<Seen> {
        let mut all = self.seen_from(place);
        all.sort_unstable_by(by_distance);
        all
    }

    fn seen_from(&self, place: usize) -> Vec<Seen> {
        let [x, y, z] = self.places[place];
        let cosine = |edge: &[f64; 3]| x * edge[0] + y * edge[1] + z * edge[2];
        self.edges
            .iter()
            .enumerate()
            .map(|(edge, it)| (edge as u16, cosine(it)))
            .collect()
    }
}

fn by_distance(a: &Seen, b: &Seen) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The smallest cosine of edges at most `extra_km` farther away than one with this cosine.
pub(crate) fn within(cosine: f64, extra_km: f64) -> f64 {
    let angle = cosine.clamp(-1.0, 1.0).acos() + extra_km / EARTH_KM;
    // Half-way around the Earth nothing is farther away.
    if angle >= std::f64::consts::PI {
        -2.0
    } else {
        angle.cos()
    }
}

/// The point of the unit sphere.
fn vector(location: Location) -> [f64; 3] {
    let (latitude, longitude) = (location.latitude.to_radians(), location.longitude.to_radians());
    let (sin, cos) = latitude.sin_cos();
    [cos * longitude.cos(), cos * longitude.sin(), sin]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(latitude: f64, longitude: f64) -> Location {
        Location { latitude, longitude }
    }

    #[test]
    fn edges_come_in_the_order_of_their_distance() {
        let edges: Vec<Location> = (0..40)
            .map(|nth| at(f64::from(nth * 7 % 80), f64::from(nth * 13 % 170)))
            .collect();
        let place = at(51.5, 0.0);
        let nearest = Nearest::new(&[place], &edges);
        let distance = |seen: &Seen| place.distance_km(edges[usize::from(seen.0)]);
        let (kept, is_all) = nearest.of(0);
        assert_eq!((kept.len(), is_all), (KEPT, false));
        assert!(kept.is_sorted_by(|a, b| distance(a) <= distance(b) + 1e-6));
        assert_eq!(kept, &nearest.all_of(0)[..KEPT]);
    }

    #[test]
    fn the_limit_is_that_of_the_globe() {
        let (london, dublin, paris) = (at(51.5, 0.0), at(53.3, -6.3), at(48.9, 2.3));
        let nearest = Nearest::new(&[london], &[dublin, paris]);
        let (seen, _) = nearest.of(0);
        assert_eq!(seen[0].0, 1, "Paris is 340 km away, Dublin 470");
        assert!(seen[1].1 >= within(seen[0].1, 200.0));
        assert!(seen[1].1 < within(seen[0].1, 100.0));
        assert_eq!(within(-1.0, 10.0), -2.0);
    }
}
