//! Enums as the values of labels of metrics.

/// Lets metrics take enums as values of labels, under the names that `strum::IntoStaticStr` gives to the variants. The derive of
/// prometheus-client would write the variants as the code does, in camel case.
///
/// ```
/// #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
/// #[strum(serialize_all = "snake_case")]
/// enum Outcome {
///     Done,
///     TimedOut,
/// }
///
/// daemon::label_values!(Outcome);
/// ```
#[macro_export]
macro_rules! label_values {
    ($($label:ty),+ $(,)?) => {$(
        impl ::prometheus_client::encoding::EncodeLabelValue for $label {
            fn encode(&self, encoder: &mut ::prometheus_client::encoding::LabelValueEncoder<'_>) -> ::std::fmt::Result {
                ::std::fmt::Write::write_str(encoder, self.into())
            }
        }
    )+};
}
