//! What the operating system says about this process and this machine.

use moshi_kernels::isa::Isa;
use moshi_kernels::pool::available_threads;

/// Facts that change how fast a step can be.
pub(crate) struct Machine {
    /// Processors that this process may use.
    pub(crate) threads: usize,
    /// Instruction sets that kernels can use, slowest first.
    pub(crate) available: Vec<&'static str>,
    /// The one in use, or what is wrong with `MOSHI_RS_ISA`.
    pub(crate) chosen: Result<Isa, String>,
    /// Large pages: `always`, `madvise` or `never`; `None` on other systems.
    pub(crate) huge_pages: Option<String>,
}

impl Machine {
    /// This machine.
    pub(crate) fn new() -> Self {
        let file = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        Self {
            threads: available_threads(),
            available: Isa::available().map(Isa::name).collect(),
            chosen: Isa::chosen(),
            huge_pages: file.ok().as_deref().and_then(bracketed).map(str::to_owned),
        }
    }
}

/// The choice in a list like `always [madvise] never`.
fn bracketed(list: &str) -> Option<&str> {
    let (_, rest) = list.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// Memory of this process that is in use, where the system tells.
pub(super) fn resident_bytes() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Memory of this process on large pages, where the system tells.
pub(super) fn huge_page_bytes() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/smaps_rollup").ok()?, "AnonHugePages:")
}

/// A line `name   123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kilobytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_system_are_read() {
        let status = "Name:\tx\nVmRSS:\t  1234 kB\nThreads:\t1\n";
        assert_eq!(field(status, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(field(status, "VmHWM:"), None);
        assert_eq!(bracketed("always [madvise] never\n"), Some("madvise"));
        assert_eq!(bracketed("always"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(huge_page_bytes().is_some());
    }
}
