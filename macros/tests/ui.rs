//! What a trait gets to hear that `#[dual_write]` can't implement.

#[test]
fn a_trait_that_can_not_be_implemented_is_told_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
