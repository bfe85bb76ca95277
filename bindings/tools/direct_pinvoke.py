#!/usr/bin/env python3
"""Let SWIG's P/Invoke class call liblycoris itself: direct_pinvoke.py NativePINVOKE.cs

SWIG binds to C wrappers in a second native library. With our typemaps each of them only casts, so they can be left out;
a test also runs with them, and would notice a typemap that does more.
"""
import re
import sys

file = sys.argv[1]
with open(file, encoding="utf-8") as opened:
    text = opened.read()
direct, count = re.subn(
    r'DllImport\("[^"]*", EntryPoint="CSharp_\w*?_(lyc_\w+?)___"\)',
    r'DllImport("lycoris", CallingConvention=global::System.Runtime.InteropServices.CallingConvention.Cdecl, EntryPoint="\1")',
    text)
if not count or "CSharp_" in direct:
    sys.exit(f"{file}: SWIG's entry points look different from what this program knows")
with open(file, "w", encoding="utf-8") as opened:
    opened.write(direct)
