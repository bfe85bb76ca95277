//! Raw declarations of liblycoris, made from its C header, which is the manual: `include/lycoris.h`.
//!
//! `ffi.rs` is generated and checked in; the macros below give its parts their form. By default the library is linked.
//! With the feature `dynamic-loading` it is opened by [`load`] instead, and the functions keep their names.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// Not Rust enums: a newer library may return values that this crate does not know.
macro_rules! enumeration {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub i32);

        impl $name {
            $($(#[$item_doc])* pub const $item: $name = $name($value);)*
            /// All that this crate knows.
            pub const ALL: &'static [(&'static str, i32)] = &[$((stringify!($item), $value)),*];
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match Self::ALL.iter().find(|(_, value)| *value == self.0) {
                    Some((name, _)) => f.write_str(name),
                    None => write!(f, "{}({})", stringify!($name), self.0),
                }
            }
        }
    };
}

macro_rules! opaque {
    ($($name:ident),*) => {
        $(
            /// Opaque; only behind pointers.
            #[repr(C)]
            pub struct $name {
                _data: [u8; 0],
                _marker: std::marker::PhantomData<(*mut u8, std::marker::PhantomPinned)>,
            }
        )*
    };
}

macro_rules! layout {
    ($($name:ident { $($field:ident),* })*) => {
        /// Each struct with its size, and its fields with their offsets, for tests to compare with C.
        pub const LAYOUT: &[(&str, usize, &[(&str, usize)])] = &[
            $((stringify!($name), size_of::<$name>(), &[$((stringify!($field), offset_of!($name, $field))),*])),*
        ];
    };
}

#[cfg(not(feature = "dynamic-loading"))]
macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C" {
            $($(#[$doc])* pub fn $name($($arg: $type),*) $(-> $result)?;)*
        }
    };
}

#[cfg(feature = "dynamic-loading")]
macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        pub(crate) struct Functions {
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        impl Functions {
            /// # Safety
            /// The library must be a liblycoris.
            pub(crate) unsafe fn find(library: &crate::loading::Library) -> Result<Functions, String> {
                Ok(Functions { $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>(
                    library.symbol(concat!(stringify!($name), "\0"))?) },)* })
            }
        }

        $(
            $(#[$doc])*
            /// # Safety
            /// As in C; [`load`] must have succeeded.
            pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $result)? {
                unsafe { (crate::loading::functions().$name)($($arg),*) }
            }
        )*
    };
}

#[rustfmt::skip]
mod ffi {
    use super::*;
    include!("ffi.rs");
}
pub use ffi::*;

#[cfg(feature = "dynamic-loading")]
mod loading;

/// Open the library, unless it is open: `path`, or else the file that LYCORIS_LIBRARY names, the folder of the
/// program, the loader's own places. Linked builds have nothing to do.
#[cfg(feature = "dynamic-loading")]
pub fn load(path: Option<&std::path::Path>) -> Result<(), String> {
    loading::load(path)
}

/// Open the library. It is linked, so there is nothing to do.
#[cfg(not(feature = "dynamic-loading"))]
pub fn load(_path: Option<&std::path::Path>) -> Result<(), String> {
    Ok(())
}
