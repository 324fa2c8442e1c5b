//! How the system's allocator keeps what programs give back to it.
#![allow(unsafe_code, reason = "a setting of the C library")]

/// Bytes from which on a piece of memory is the system's own mapping and goes back to it whole.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;
/// Heaps of all threads together: few, for what is freed to be found again; more than one, for
/// threads that seldom wait for each other.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: libc::c_int = 2;

/// For programs that run for months and take and free a session's memory from several threads: two
/// heaps, and large pieces outside them. By default glibc gives every thread a heap and keeps ever
/// larger pieces in it; they come to lie between small ones that stay, and the program grows though
/// it holds no more than before.
///
/// To be called before threads start. `false` where the allocator has no such settings, or refuses
/// them.
pub fn keep_compact() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: a number for the allocator, which locks itself.
        let heaps = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
        // SAFETY: as above.
        let mappings = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
        heaps == 1 && mappings == 1
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_takes_the_settings() {
        assert_eq!(keep_compact(), cfg!(all(target_os = "linux", target_env = "gnu")));
    }
}
