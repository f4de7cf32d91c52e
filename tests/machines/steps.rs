//! What is made before the long tests.

mod long {
    use crate::common::bootable_cache;

    #[test]
    #[ignore = "made before the tests"]
    fn a_cache_with_a_bookworm_that_boots() {
        bootable_cache("bookworm");
    }

    #[test]
    #[ignore = "made before the tests"]
    fn caches_for_xen() {
        for suite in ["trixie", "bookworm"] {
            crate::xen::cache(suite);
        }
    }

    #[test]
    #[ignore = "made before the tests"]
    fn a_xen_host() {
        crate::xen::host();
    }
}
