//! The library of NVIDIA's driver, looked for when a program asks for a GPU and not when it starts.
//!
//! What uses CUDA names `libcuda.so.1` as a library that it needs, so that without a driver a
//! program does not start, whatever device it wants. The functions here have the driver's names
//! and come first when the program is linked, so that the linker drops the library. Each jumps to
//! the address in its slot of a table, which [`load`] fills from the driver. Before that, and for
//! a function that a driver lacks, the slot holds one that returns an error code.
//!
//! A function that is not listed below makes the linker keep the library: nothing breaks where
//! there is a driver.
#![allow(unsafe_code, reason = "calls into a library that is found at run time")]

use std::arch::global_asm;
use std::error::Error;
use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

/// The driver's library, by the name that its interface has.
const LIBRARY: &str = "libcuda.so.1";

/// What the driver calls `CUDA_ERROR_NOT_FOUND`.
const NOT_FOUND: c_int = 500;

/// Takes the place of a function that is not there. Arguments are the caller's to clean up.
extern "C" fn absent() -> c_int {
    NOT_FOUND
}

/// Assembly of a function that jumps to its slot. No register of an argument is touched.
#[cfg(target_arch = "x86_64")]
macro_rules! forward {
    ($name:ident) => {
        concat!(
            ".pushsection .text.moshi_cuda_driver,\"ax\",@progbits\n",
            concat!(".globl ", stringify!($name), "\n"),
            concat!(".hidden ", stringify!($name), "\n"),
            concat!(".type ", stringify!($name), ", @function\n"),
            concat!(stringify!($name), ":\n"),
            "jmp qword ptr [rip + {table} + {offset}]\n",
            ".popsection",
        )
    };
}

/// Assembly of a function that jumps to its slot. x16 belongs to code between caller and callee.
#[cfg(target_arch = "aarch64")]
macro_rules! forward {
    ($name:ident) => {
        concat!(
            ".pushsection .text.moshi_cuda_driver,\"ax\",@progbits\n",
            concat!(".globl ", stringify!($name), "\n"),
            concat!(".hidden ", stringify!($name), "\n"),
            concat!(".type ", stringify!($name), ", %function\n"),
            concat!(stringify!($name), ":\n"),
            "adrp x16, {table} + {offset}\n",
            "ldr x16, [x16, #:lo12:{table} + {offset}]\n",
            "br x16\n",
            ".popsection",
        )
    };
}

macro_rules! driver_functions {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types, clippy::enum_variant_names, reason = "the driver's names")]
        enum Function { $($name),* }

        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(global_asm!(
            forward!($name),
            table = sym TABLE,
            offset = const Function::$name as usize * size_of::<AtomicPtr<()>>(),
        );)*
    };
}

static TABLE: [AtomicPtr<()>; NAMES.len()] =
    [const { AtomicPtr::new(absent as extern "C" fn() -> c_int as *mut ()) }; NAMES.len()];

driver_functions! {
    cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig
    cuCtxGetCurrent cuCtxGetLimit cuCtxGetStreamPriorityRange cuCtxSetCacheConfig cuCtxSetCurrent
    cuCtxSetFlags cuCtxSetLimit cuCtxSynchronize cuDestroyExternalMemory cuDeviceGet
    cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetDefaultMemPool cuDeviceGetMemPool
    cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2 cuDevicePrimaryCtxRelease_v2
    cuDevicePrimaryCtxRetain cuDeviceSetMemPool cuDeviceTotalMem_v2 cuEventCreate
    cuEventDestroy_v2 cuEventElapsedTime cuEventElapsedTime_v2 cuEventQuery cuEventRecord
    cuEventSynchronize cuExternalMemoryGetMappedBuffer cuFuncGetAttribute cuFuncSetAttribute
    cuFuncSetCacheConfig cuGetErrorName cuGetErrorString cuGraphClone cuGraphDestroy
    cuGraphExecDestroy cuGraphInstantiate cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload
    cuImportExternalMemory cuInit cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernel
    cuMemAdvise cuMemAdvise_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocManaged
    cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc
    cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute cuMemPoolSetAttribute
    cuMemPoolTrimTo cuMemPrefetchAsync cuMemPrefetchAsync_v2 cuMemcpyDtoDAsync_v2
    cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2
    cuMemcpyPeerAsync cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction cuModuleGetGlobal_v2
    cuModuleLoad cuModuleLoadData cuModuleUnload cuOccupancyAvailableDynamicSMemPerBlock
    cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
    cuOccupancyMaxPotentialClusterSize cuProfilerStart cuProfilerStop cuStreamAttachMemAsync
    cuStreamBeginCapture_v2 cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2
    cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
}

/// Loads the driver; a second call repeats the result of the first.
///
/// # Errors
/// The reason of the dynamic loader, when there is no driver.
pub fn load() -> Result<(), &'static str> {
    static DRIVER: OnceLock<Result<Library, String>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| {
        // SAFETY: what the driver runs when it is loaded is NVIDIA's, as with any other way of
        // loading it. It is never unloaded.
        let library = unsafe { Library::new(LIBRARY) }.map_err(|error| {
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            if reason.contains(LIBRARY) { reason } else { format!("{LIBRARY}: {reason}") }
        })?;
        for (slot, name) in TABLE.iter().zip(NAMES) {
            // SAFETY: the symbol is only taken as an address. Callers come through the function
            // of the same name, whose type they declare as the driver documents it.
            if let Ok(function) = unsafe { library.get::<extern "C" fn()>(*name) } {
                slot.store(*function as *mut (), Ordering::Release);
            }
        }
        Ok(library)
    });
    driver.as_ref().map(|_| ()).map_err(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn cuInit(flags: std::ffi::c_uint) -> c_int;
    }

    #[test]
    fn functions_return_a_code_without_a_driver_and_reach_one_that_is_there() {
        match load() {
            // SAFETY: a function of the driver that may be called at any time.
            Ok(()) => assert_ne!(unsafe { cuInit(0) }, NOT_FOUND),
            Err(reason) => {
                assert!(reason.contains(LIBRARY), "{reason}");
                // SAFETY: reaches `absent`.
                assert_eq!(unsafe { cuInit(0) }, NOT_FOUND);
            }
        }
    }
}
