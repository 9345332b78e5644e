//! What a trait gets to hear that `#[dual_write]` can't implement.

#[test]
fn an_unusable_trait_is_refused_with_the_reason() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
