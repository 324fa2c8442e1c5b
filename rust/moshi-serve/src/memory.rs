//! How much memory this machine has left, where that can be known.

/// Part of the free memory that conversations may take: the rest is for what else grows.
const SHARE: f64 = 0.8;

/// Conversations of this size that fit into free memory, at least one. `None` where free memory
/// is not known.
pub(crate) fn sessions_that_fit(session_bytes: u64) -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| available_bytes(&text));
    let group = |name: &str| read(&format!("/sys/fs/cgroup/memory.{name}"));
    let limit = group("max").zip(group("current"));
    let stat = group("stat").unwrap_or_default();
    let group = limit.and_then(|(max, current)| left_bytes(&max, &current, &stat));
    let fit = (machine.into_iter().chain(group).min()? as f64 * SHARE) as u64;
    let sessions = fit.checked_div(session_bytes)?;
    Some(usize::try_from(sessions).unwrap_or(usize::MAX).max(1))
}

/// What Linux says can be allocated without swapping.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What a container's limit leaves, where there is one. Pages of files that were read once, as those
/// of a checkpoint, count as used there and are given up when memory is asked for.
fn left_bytes(max: &str, current: &str, stat: &str) -> Option<u64> {
    let bytes = |text: &str| text.trim().parse::<u64>().ok();
    let cached = stat.lines().find_map(|line| bytes(line.strip_prefix("inactive_file ")?));
    let used = bytes(current)?.saturating_sub(cached.unwrap_or(0));
    Some(bytes(max)?.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_what_linux_says() {
        let text = "MemTotal:       24564160 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available_bytes(text), Some(20_480_000_000));
        for odd in ["", "MemAvailable: many kB\n", "MemAvailable: 3 MB\n"] {
            assert_eq!(available_bytes(odd), None, "{odd}");
        }
        assert_eq!(left_bytes("16000\n", "6000\n", ""), Some(10_000));
        let stat = "anon 1500\ninactive_file 4000\nactive_file 500\n";
        assert_eq!(left_bytes("16000\n", "6000\n", stat), Some(14_000));
        assert_eq!(left_bytes("6000\n", "16000\n", stat), Some(0));
        assert_eq!(left_bytes("max\n", "6000\n", stat), None);
        assert_eq!(sessions_that_fit(0), None);
        assert!(sessions_that_fit(u64::MAX).is_none_or(|sessions| sessions == 1));
    }
}
