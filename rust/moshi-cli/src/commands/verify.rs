//! `moshi-rs verify`.

use moshi_core::exec::Executor;
use moshi_core::with_executor;

use crate::options::VerifyArgs;
use crate::output::{EXIT_FELL_SHORT, Result, line};
use crate::verify::verify_case;

pub(crate) fn verify(args: &VerifyArgs) -> Result<i32> {
    let compute = &args.compute;
    with_executor!(compute.device(), compute.cpu_executor(), exec => verify_with(&exec, args))
}

fn verify_with<E: Executor>(exec: &E, args: &VerifyArgs) -> Result<i32> {
    let (mut passed, mut cases_passed) = (0, 0);
    let mut total = 0;
    for folder in &args.cases {
        line(folder.display())?;
        match verify_case(exec, folder) {
            Ok(report) => {
                for check in &report.checks {
                    line(check)?;
                }
                passed += report.checks.iter().filter(|check| check.passed).count();
                total += report.checks.len();
                cases_passed += usize::from(report.passed());
            }
            Err(error) => {
                line(format_args!("  FAIL {error}"))?;
                total += 1;
            }
        }
    }
    let cases = args.cases.len();
    line(format_args!("{passed} of {total} checks passed, {cases_passed} of {cases} cases"))?;
    Ok(if cases_passed == cases { 0 } else { EXIT_FELL_SHORT })
}
