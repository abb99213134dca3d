//! A group of numbers of the policy. [`group`] states each number once: its name in documents, its default, how it is
//! read, and the change of it that needs two people.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::de::DeserializeOwned;

use crate::document::Section;

/// The direction of change that makes a policy looser: it takes protection away, or makes the control plane see or do
/// less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looser {
    /// A greater value is looser.
    More,
    /// A smaller value is looser.
    Less,
    /// Every change is looser: too small a value does one kind of harm, too large a value another.
    Either,
    /// No change is looser.
    Never,
}

impl Looser {
    pub(super) fn is_looser(self, from: Value, to: Value) -> bool {
        match self {
            Self::More => to > from,
            Self::Less => to < from,
            Self::Either => to != from,
            Self::Never => false,
        }
    }
}

/// The limits up to which one person may make detection stricter. Beyond it detection fires on regions that work, and then no failover is
/// possible: every region is down, and none is a place to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// At least half of the shipped default.
    Half,
    /// At least half of the shipped default, and two ticks: one bad tick is no evidence.
    Ticks,
    /// At most twice the shipped default.
    Twice,
    /// At most half way from the shipped default to all.
    HalfWay,
}

impl Bound {
    /// Whether a change is further from the shipped default than the bound, and away from it.
    pub(super) fn is_hasty(self, from: Value, to: Value, default: Value) -> bool {
        let plain = |value: Value| match value {
            Value::Number(it) | Value::Seconds(it) => it,
            Value::Switch(is_on) => f64::from(u8::from(is_on)),
        };
        let (from, to, default) = (plain(from), plain(to), plain(default));
        match self {
            Self::Half => to < from && to < default / 2.0,
            Self::Ticks => to < from && to < (default / 2.0).max(2.0),
            Self::Twice => to > from && to > default * 2.0,
            Self::HalfWay => to > from && to > f64::midpoint(default, 1.0),
        }
    }
}

/// A value of the policy, as it is compared and printed.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Value {
    Number(f64),
    Seconds(f64),
    Switch(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::Switch(is_on) => f.pad(if *is_on { "on" } else { "off" }),
        }
    }
}

impl From<&u32> for Value {
    fn from(number: &u32) -> Self {
        Self::Number((*number).into())
    }
}

impl From<&f64> for Value {
    fn from(number: &f64) -> Self {
        Self::Number(*number)
    }
}

impl From<&Duration> for Value {
    fn from(time: &Duration) -> Self {
        Self::Seconds(time.as_secs_f64())
    }
}

impl From<&bool> for Value {
    fn from(is_on: &bool) -> Self {
        Self::Switch(*is_on)
    }
}

/// The largest change between two consecutive percentages, the first of them after `from`.
pub(super) fn largest_step(percents: impl IntoIterator<Item = u8>, from: u8) -> Value {
    let mut before = from;
    let steps = percents.into_iter().map(|percent| {
        let step = percent.abs_diff(before);
        before = percent;
        step
    });
    Value::Number(steps.max().unwrap_or_default().into())
}

/// One number of a policy, as [`super::Policy::loosened_by`] compares it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Its name in documents, such as `probe.timeout`.
    pub(super) name: &'static str,
    pub(super) value: Value,
    pub(super) looser: Looser,
    /// The other side of a number that finds a region or an edge bad, where stricter is not safer without end.
    pub(super) bound: Option<Bound>,
}

/// Reads a number that must lie in `range`.
pub(super) fn within<T>(range: RangeInclusive<T>) -> impl FnOnce(&mut Section<'_>, &str, T) -> T
where
    T: DeserializeOwned + PartialOrd + fmt::Display,
{
    move |section, key, default| section.in_range(key, default, range)
}

/// Reads a duration that must lie in `range`.
pub(super) fn lasting(range: RangeInclusive<Duration>) -> impl FnOnce(&mut Section<'_>, &str, Duration) -> Duration {
    move |section, key, default| section.duration_in_range(key, default, range)
}

/// Reads a value of which the document shows `example`.
pub(super) fn like<T: DeserializeOwned>(example: &'static str) -> impl FnOnce(&mut Section<'_>, &str, T) -> T {
    move |section, key, default| section.optional(key, default, example)
}

/// Defines a group: the struct, its defaults, `read`, and `settings`. After `=>` a field states, in brackets, how it is
/// read; after a semicolon, which change is looser ([`Looser`]), and for a number that finds regions bad, its other side
/// ([`Bound`]). A list is compared by one number, `of` it. A field `[by hand]` is read and compared by the group's own
/// code.
macro_rules! group {
    (
        $(#[$about:meta])*
        $group:ident, $section:literal {
            $( $(#[$doc:meta])* $field:ident: $type:ty = $default:expr => $how:tt; )+
        }
    ) => {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        $(#[$about])*
        pub struct $group {
            $( $(#[$doc])* pub $field: $type, )+
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $group {
            /// Reads the group's section of a document. `check` reports values that do not fit together.
            pub(super) fn read(&mut self, root: &mut Section<'_>, check: impl FnOnce(&mut Self, &mut Section<'_>)) {
                if let Some(mut section) = root.section($section) {
                    $( $crate::policy::group::read_field!(self.$field, section, stringify!($field), $how); )+
                    check(self, &mut section);
                    section.finish();
                }
            }

            /// Every field but those compared by hand.
            pub(super) fn settings(&self) -> Vec<$crate::policy::group::Setting> {
                [$( $crate::policy::group::setting!(self.$field, concat!($section, ".", stringify!($field)), $how) ),+]
                    .into_iter()
                    .flatten()
                    .collect()
            }
        }
    };
}

macro_rules! read_field {
    ($field:expr, $section:ident, $key:expr, [by hand]) => {};
    ($field:expr, $section:ident, $key:expr, [$read:expr; $($direction:tt)+]) => {
        $field = ($read)(&mut $section, $key, std::mem::take(&mut $field));
    };
}

macro_rules! setting {
    ($field:expr, $name:expr, [by hand]) => {
        None
    };
    ($field:expr, $name:expr, [$read:expr; $looser:ident of $value:expr]) => {
        $crate::policy::group::setting!($name, ($value)(&$field), $looser, None)
    };
    ($field:expr, $name:expr, [$read:expr; $looser:ident]) => {
        $crate::policy::group::setting!($name, (&$field).into(), $looser, None)
    };
    ($field:expr, $name:expr, [$read:expr; $looser:ident, $bound:ident]) => {
        $crate::policy::group::setting!(
            $name,
            (&$field).into(),
            $looser,
            Some($crate::policy::group::Bound::$bound)
        )
    };
    ($name:expr, $value:expr, $looser:ident, $bound:expr) => {
        Some($crate::policy::group::Setting {
            name: $name,
            value: $value,
            looser: $crate::policy::group::Looser::$looser,
            bound: $bound,
        })
    };
}

pub(super) use {group, read_field, setting};
