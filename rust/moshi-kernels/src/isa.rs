//! Which instructions the kernels use: the best that the processor has, or what `MOSHI_RS_ISA` says.
//!
//! One binary holds every variant; nothing is decided at compile time but the architecture.

use std::sync::OnceLock;

/// A set of instructions that the kernels have code for, in rising order of speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler may assume of the architecture.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512Vnni];

    /// Name in `MOSHI_RS_ISA`, logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// True when this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.is_available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// What this processor can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest that this processor can run.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// The one in use, decided once: `MOSHI_RS_ISA` where it is set, else the fastest.
    ///
    /// # Errors
    /// What is wrong with the value of `MOSHI_RS_ISA`.
    pub fn chosen() -> Result<Self, String> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        let choose = || Self::parse(std::env::var(VARIABLE).ok().as_deref());
        CHOSEN.get_or_init(choose).clone()
    }

    fn parse(value: Option<&str>) -> Result<Self, String> {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Self::best()) };
        let names = || Self::available().map(Self::name).collect::<Vec<_>>().join(", ");
        let found = Self::ALL.into_iter().find(|isa| isa.name() == value);
        match found {
            Some(isa) if isa.is_available() => Ok(isa),
            Some(_) => {
                Err(format!("{VARIABLE}={value}: not on this processor, which has {}", names()))
            }
            None => Err(format!("{VARIABLE}={value}: unknown; this processor has {}", names())),
        }
    }
}

/// Environment variable that names a variant, for tests and for reports of problems.
const VARIABLE: &str = "MOSHI_RS_ISA";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_a_variant_and_mistakes_say_what_there_is() {
        assert_eq!(Isa::parse(None), Ok(Isa::best()));
        assert_eq!(Isa::parse(Some("")), Ok(Isa::best()));
        for isa in Isa::available() {
            assert_eq!(Isa::parse(Some(isa.name())), Ok(isa));
        }
        let error = Isa::parse(Some("avx1024")).unwrap_err();
        assert!(error.contains("avx1024") && error.contains("scalar"), "{error}");
    }

    #[test]
    fn faster_variants_come_later() {
        let all: Vec<Isa> = Isa::available().collect();
        assert!(all.is_sorted() && all[0] == Isa::Scalar);
    }
}
