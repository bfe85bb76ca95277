#!/usr/bin/env python3
"""What the built liblycoris.so shows, needs and does at load, read from the file.

Usage: library_test.py LIBRARY HEADER
"""

import pathlib
import re
import subprocess
import sys
import unittest

LIBRARY, HEADER = sys.argv[1:3]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dynamic(tag):
    return re.findall(rf"\({tag}\)\s+(?:.*\[)?([^\]\n]*)", output("readelf", "--dynamic", "--wide", LIBRARY))


class Library(unittest.TestCase):
    def test_shows_exactly_the_functions_of_the_header(self):
        declared = set(re.findall(r"\b(lyc_\w+)\(", output("gcc", "-E", "-P", HEADER)))
        text = pathlib.Path(HEADER).read_text(encoding="utf-8")
        node = "LYCORIS_" + ".".join(re.findall(r"#define LYC_ABI_(?:MAJOR|MINOR) (\d+)", text))
        shown = [line.split()[1:] for line in output("nm", "-D", "--defined-only", LIBRARY).splitlines()]
        expected = [["A", node]] + [["T", f"{name}@@{node}"] for name in declared]
        self.assertGreater(len(declared), 50)
        self.assertEqual(sorted(shown), sorted(expected))

    def test_needs_only_the_c_library(self):
        versions = re.findall(r"Name: GLIBC_([0-9.]+)", output("readelf", "--version-info", "--wide", LIBRARY))
        newest = max(versions, key=lambda text: [int(part) for part in text.split(".")])
        print(f"needs {', '.join(dynamic('NEEDED'))}; newest symbol version GLIBC_{newest}", file=sys.stderr)
        allowed = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2",
                   "ld-linux-aarch64.so.1"}
        self.assertLessEqual(set(dynamic("NEEDED")), allowed)

    def test_is_named_by_its_major_version(self):
        self.assertEqual(dynamic("SONAME"), ["liblycoris.so.0"])

    def test_carries_no_search_path_and_no_text_relocation(self):
        for tag in ("RPATH", "RUNPATH", "TEXTREL"):
            self.assertEqual(dynamic(tag), [])

    def test_binds_its_own_calls_to_itself(self):
        # Else a host's function of the same name would take them over, even under RTLD_LOCAL.
        self.assertNotRegex(output("readelf", "--relocs", "--wide", LIBRARY), r"\blyc_\w+")

    def test_runs_no_initialiser_of_its_own(self):
        # The compiler's stub, and what the C++ runtime inside brings: its sources end in .cc, ours in .cpp.
        section = re.search(r"\.init_array\s+INIT_ARRAY\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)",
                            output("readelf", "--sections", "--wide", LIBRARY))
        begin, size = (int(text, 16) for text in section.groups())
        relocations = re.findall(r"^([0-9a-f]+) .*_RELATIV[E\d]*\s+([0-9a-f]+)$",
                                 output("readelf", "--relocs", "--wide", LIBRARY), re.MULTILINE)
        targets = [int(to, 16) for at, to in relocations if begin <= int(at, 16) < begin + size]
        names = {int(line.split()[0], 16): line.split()[2]
                 for line in output("nm", "--defined-only", LIBRARY).splitlines() if line.split()[1] in "tT"}
        self.assertEqual(len(targets), size // 8)
        for target in targets:
            self.assertRegex(names[target], r"^(frame_dummy|_GLOBAL__sub_I_\w+\.cc)$")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
