#!/usr/bin/env python3
"""The rules of docs/abi.md about names, types and arguments, checked on the text of the header.

Usage: header_test.py HEADER
"""

import pathlib
import re
import sys
import unittest

TEXT = re.sub(r"/\*.*?\*/", " ", pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"), flags=re.DOTALL)
MACROS = dict(re.findall(r"^#define (LYC_\w+)[ \t]+(.+?)[ \t]*$", TEXT, re.MULTILINE))
CODE = re.sub(r"^\s*#.*$", "", TEXT, flags=re.MULTILINE)
ENUMS = dict(re.findall(r"typedef enum (\w+) \{(.*?)\}", CODE, re.DOTALL))
STRUCTS = {name: [" ".join(field.split()) for field in body.split(";") if field.strip()]
           for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", CODE, re.DOTALL)}
HANDLES = set(re.findall(r"typedef struct (\w+) +\w+;", CODE))
FROZEN = {"lyc_tensor", "lyc_batch_item", "lyc_multiplier_rule"}

# (result, name, [argument...]) of every function.
FUNCTIONS = [(" ".join(result.split()), name, [" ".join(argument.split()) for argument in arguments.split(",")])
             for result, name, arguments in re.findall(r"LYC_API\s+([\w *]+?)\b(lyc_\w+)\(([^)]*)\);", CODE)]


class Header(unittest.TestCase):
    def test_was_understood(self):
        self.assertEqual(len(FUNCTIONS), len(re.findall(r"\bLYC_API\s", CODE)))
        self.assertGreater(len(FUNCTIONS), 50)
        self.assertGreater(len(ENUMS), 5)
        self.assertGreater(len(STRUCTS), 10)

    def test_uses_only_types_that_every_language_has(self):
        known = {"void", "char", "float", "double", "size_t", "int32_t", "uint32_t", "int64_t", "uint64_t", "const"}
        known |= set(ENUMS) | set(STRUCTS) | HANDLES | set(re.findall(r"\(\*(lyc_\w+_fn)\)", CODE))
        fields = [field for struct in STRUCTS.values() for field in struct]
        arguments = [argument for _, _, arguments in FUNCTIONS for argument in arguments]
        for declaration in fields + [a for a in arguments if a != "void"]:
            with self.subTest(declaration):
                self.assertLessEqual(set(re.findall(r"\w+", declaration.split("[")[0])[:-1]), known)
        self.assertNotRegex(CODE, r"\b(union|_Bool|bool|long|unsigned|short)\b|\.\.\.|:\s*\d")

    def test_passes_no_struct_by_value(self):
        for result, name, arguments in FUNCTIONS:
            for declaration in [result + " result"] + arguments:
                with self.subTest(name, declaration=declaration):
                    kind = re.fullmatch(r"(?:const )?(\w+) \w+", declaration)
                    self.assertFalse(kind and kind[1] in set(STRUCTS) | HANDLES)

    def test_macros_are_literals(self):
        for name, value in MACROS.items():
            if name != "LYC_API":
                self.assertRegex(value, r"^\d+$", name)

    def test_enums_are_explicit_and_32_bits_wide(self):
        for name, body in ENUMS.items():
            with self.subTest(name):
                entries = [entry.split("=") for entry in body.split(",")]
                self.assertTrue(all(len(entry) == 2 for entry in entries))
                values = [int(value, 0) for _, value in entries]
                self.assertEqual(len(set(values)), len(values))
                self.assertGreaterEqual(min(values), 0)
                self.assertTrue(entries[-1][0].strip().endswith("_FORCE_INT32_"))
                self.assertEqual(values[-1], 0x7FFFFFFF)

    def test_structs_are_frozen_or_can_grow(self):
        functions = {name: (result, arguments) for result, name, arguments in FUNCTIONS}
        for name, fields in STRUCTS.items():
            with self.subTest(name):
                self.assertEqual(fields[0] == "uint32_t struct_size", name not in FROZEN)
                if name not in FROZEN:
                    result, arguments = functions[f"{name}_init"]
                    self.assertEqual(result, "void")
                    self.assertRegex(arguments[0], rf"^{name} \*\w+$")
                    self.assertEqual(arguments[1:], ["size_t struct_size"])

    def test_handles_are_released(self):
        names = {name for _, name, _ in FUNCTIONS}
        for handle in HANDLES:
            self.assertIn(f"{handle}_release", names)

    def test_what_can_fail_returns_a_status(self):
        for result, name, arguments in FUNCTIONS:
            with self.subTest(name):
                if result == "void":
                    self.assertRegex(name, r"_(init|retain|release|clear_last_error)$")
                elif result != "lyc_status":
                    self.assertFalse(any(re.search(r"\bout_", argument) for argument in arguments))

    def test_arguments_follow_the_patterns(self):
        for _, function, arguments in FUNCTIONS:
            if function.endswith("_init"):
                continue
            names = [re.search(r"(\w+)$", argument)[1] for argument in arguments]
            for index, (argument, name) in enumerate(zip(arguments, names)):
                with self.subTest(function, argument=argument):
                    new_reference = re.fullmatch(r"lyc_(\w+) \*\*(\w+)", argument)
                    if new_reference:
                        self.assertEqual(name, "out_" + new_reference[1])
                    if name.startswith("out_"):
                        self.assertIn("*", argument)
                    if name == "buffer":
                        self.assertEqual(arguments[index:], ["char *buffer", "size_t capacity", "size_t *out_length"])
                    if name == "exec":
                        self.assertEqual((argument, index), ("const lyc_exec *exec", len(arguments) - 1))
                    if argument.startswith("const char *const *"):
                        self.assertTrue(any(other.endswith("_count") for other in names[index:]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
