"""The program as a person at a shell uses it: program_test.py LYCORIS MAKE_DEMO_FILES [FOLDER OF A DEVICE'S BACK END]."""

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from large_files import write_large_merge, write_zeros

PROGRAM, MAKE_DEMO_FILES = map(os.path.abspath, sys.argv[1:3])
HEAP_DEVICE = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
DONE, FAILED, WRONG_USAGE = 0, 1, 2


def run(*arguments, **options):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="lycoris-tools-")
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)
        subprocess.run([MAKE_DEMO_FILES, self.folder], check=True)
        self.base, self.style, self.detail = (self.folder / f"{n}.safetensors" for n in ("base", "style", "detail"))
        self.out = self.folder / "out.safetensors"
        self.inputs = self.names()

    def names(self):
        return sorted(os.listdir(self.folder))

    def merge(self, *arguments, **options):
        return run("merge", self.base, self.style, "-o", self.out, *arguments, **options)

    def assert_fails(self, result, code, *words):
        """One line on stderr that says what is wrong (and where to find the usage), nothing on stdout."""
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        lines = [line for line in result.stderr.splitlines() if " %  " not in line]
        self.assertEqual(len(lines), 1 if code == FAILED else 2, result.stderr)
        self.assertTrue(lines[0].startswith("lycoris: "), lines[0])
        for word in words:
            self.assertIn(str(word), lines[0])
        if code == WRONG_USAGE:
            self.assertIn("--help", lines[1])
        self.assertEqual(self.names(), self.inputs)


class Usage(ProgramTest):
    def test_help_is_on_stdout_and_complete(self):
        for arguments, words in (
            (["--help"], ["merge", "inspect", "Exit status: 0 done, 1 failed, 2 wrong usage"]),
            (["merge", "--help"], ["BASE", "ADAPTER", "--output", "--multiplier", "--include", "--exclude", "--dtype",
                                   "--dora-rule", "--device", "--threads", "--force", "--json", "--quiet", "Examples"]),
            (["inspect", "--help"], ["FILE", "--json"]),
        ):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stderr), (DONE, ""))
            for word in words:
                self.assertIn(word, result.stdout)

    def test_version(self):
        result = run("--version")
        self.assertRegex(result.stdout, r"^lycoris \d+\.\d+\.\d+\n$")
        self.assertEqual(result.returncode, DONE)

    def test_wrong_usage(self):
        for arguments in (
            [], ["nonsense"], ["merge"], ["merge", self.base, self.style], ["merge", self.base, "-o", self.out],
            ["merge", self.base, self.style, "-o", self.out, "--unknown"],
            ["merge", self.base, self.style, "-o", self.out, "--dtype", "fp4"],
            ["merge", self.base, self.style, "-o", self.out, "--dora-rule", "x"],
            ["merge", self.base, self.style, "-o", self.out, "--threads", "-1"],
            ["merge", self.base, self.style, "-o", self.out, "--threads", "many"],
            ["merge", self.base, self.style, "-o", self.out, "--device", "gpu"],
            ["merge", self.base, self.style, "-o", self.out, "--device", "cuda:"],
            ["merge", self.base, self.style, "-o", self.out, "--device", "cuda:x"],
            ["inspect"], ["inspect", self.base, self.style],
        ):
            with self.subTest(arguments=arguments):
                self.assert_fails(run(*arguments), WRONG_USAGE)

    def test_multipliers_that_make_no_sense(self):
        for multipliers in (["a"], ["*=x"], ["="], ["=0.5"], ["*="], ["nan"], ["*=inf"], [""], ["1", "2"], [" 1 "]):
            with self.subTest(multipliers=multipliers):
                options = [part for m in multipliers for part in ("--multiplier", m)]
                self.assert_fails(self.merge(*options), WRONG_USAGE, "--multiplier")
            self.out.unlink(missing_ok=True)


class Merging(ProgramTest):
    def test_summary(self):
        result = run("merge", self.base, self.style, self.detail, "-o", self.out, "-m", "0.5", "-m", "-0.25")
        self.assertEqual(result.returncode, DONE, result.stderr)
        for word in ("locon", "lokr", "dora", "peak memory", "tensors changed", str(self.out)):
            self.assertIn(word, result.stdout)
        self.assertEqual(self.names(), sorted([*self.inputs, "out.safetensors"]))

    def test_json(self):
        result = self.merge("--json")
        report = json.loads(result.stdout)
        self.assertEqual(result.stderr, "")
        self.assertEqual(report["operation"], "merge")
        self.assertEqual(report["output"]["path"], str(self.out))
        self.assertTrue(all(layer["outcome"] == "matched" for layer in report["layers"]))

    def test_quiet(self):
        result = self.merge("--quiet")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (DONE, "", ""))
        self.assertTrue(self.out.exists())
        self.inputs = self.names()
        self.assert_fails(self.merge("--quiet"), FAILED, "exists", self.out)
        self.assertEqual(self.merge("--quiet", "--force").returncode, DONE)

    def test_patterns_may_hold_an_equals_sign(self):
        base, adapter = self.folder / "b.safetensors", self.folder / "a.safetensors"
        write_zeros(base, {"x=y.weight": [8, 8], "z.weight": [8, 8]}, "F32")
        write_zeros(adapter, {f"lycoris_{n}.{s}": [8, 8] for n in ("x=y", "z") for s in ("diff",)}, "F32")
        result = run("merge", base, adapter, "-o", self.out, "--json", "--multiplier", "x=y*=0")
        self.assertEqual(result.returncode, DONE, result.stderr)
        self.assertEqual(json.loads(result.stdout)["output"]["changed_tensors"], 1)

    def test_excluding_everything_is_a_copy(self):
        self.assertEqual(self.merge("--exclude", "*").returncode, DONE)
        self.assertEqual(self.out.read_bytes(), self.base.read_bytes())

    def test_includes_and_excludes_take_one_word_each(self):
        result = self.merge("--include", "*attn1*", "--include", "*attn2*", "--exclude", "*to_q*", "--json")
        layers = json.loads(result.stdout)["layers"]
        for layer in layers:
            used = "attn" in layer["layer"] and "to_q" not in layer["layer"]
            self.assertEqual(layer["outcome"], "matched" if used else "excluded", layer["layer"])

    def test_options_before_files(self):
        result = run("merge", "--multiplier", "0.5", "--exclude", "x", "-o", self.out, self.base, self.style, "--quiet")
        self.assertEqual((result.returncode, result.stderr), (DONE, ""))

    def test_names_that_look_like_options_or_have_spaces(self):
        odd = self.folder / "a b"
        odd.mkdir()
        (odd / "-b.safetensors").write_bytes(self.base.read_bytes())
        result = subprocess.run([PROGRAM, "merge", "--quiet", "-o", "o u t.safetensors", "--", "-b.safetensors",
                                 str(self.style)], cwd=odd, capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (DONE, ""))
        self.assertTrue((odd / "o u t.safetensors").exists())

    def test_a_wrong_base_is_named(self):
        other = self.folder / "other.safetensors"
        write_zeros(other, {"something.weight": [8, 8]})
        self.inputs = self.names()
        result = run("merge", other, self.style, "-o", self.out)
        self.assert_fails(result, FAILED, "other.safetensors", "style.safetensors")

    def test_places_that_refuse(self):
        self.assert_fails(run("merge", self.base, self.style, "-o", self.folder / "no" / "out.safetensors"), FAILED, "no")
        self.assert_fails(run("merge", self.base, self.folder / "none", "-o", self.out), FAILED, "none")
        self.assert_fails(run("merge", self.base, self.style, "-o", self.base, "--force"), FAILED, "base")
        self.assert_fails(run("merge", self.base, self.style, "-o", "/proc/out.safetensors"), FAILED, "/proc/out")
        self.assert_fails(run("merge", self.base, self.style, "-o", "/dev/null", "--force"), FAILED, "/dev/null")

    def test_a_device_that_is_not_there(self):
        environment = {**os.environ, "LYCORIS_BACKEND_DIR": str(self.folder)}
        self.assert_fails(self.merge("--device", "cuda:1", env=environment), FAILED, "no CUDA back end",
                          f"{self.folder}/liblycoris_cuda.so: no such file")
        self.assert_fails(self.merge("--device", "cuda", env={**os.environ, "LYCORIS_DISABLE_CUDA": "1"}), FAILED,
                          "LYCORIS_DISABLE_CUDA=1")

    def test_any_device_gives_the_same_file(self):
        if not HEAP_DEVICE:
            self.skipTest("this build has no device to test with")
        environment = {**os.environ, "LYCORIS_BACKEND_DIR": HEAP_DEVICE}
        self.assertEqual(self.merge("--quiet", "--device", "cuda", env=environment).stderr, "")
        on_device = self.out.read_bytes()
        self.merge("--quiet", "--force")
        self.assertEqual(on_device, self.out.read_bytes())
        self.inputs = self.names()
        self.assert_fails(self.merge("--force", "--device", "cuda:1", env=environment), FAILED, "1")

    def test_full_disk(self):
        if os.geteuid() != 0:
            self.skipTest("mounting takes root")
        small = self.folder / "small"
        small.mkdir()
        size = self.base.stat().st_size
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", str(small)],
                                 capture_output=True)
        if mounted.returncode != 0:
            self.skipTest("mounting is not permitted here")
        self.inputs = self.names()
        try:
            result = run("merge", self.base, self.style, "-o", small / "out.safetensors")
            self.assert_fails(result, FAILED, "No space left on device", "out.safetensors")
            self.assertEqual(os.listdir(small), [])
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_results_that_cannot_be_shown(self):
        with open("/dev/full", "w") as full:
            for arguments in (["inspect", self.style], ["merge", self.base, self.style, "-o", self.out, "--json"]):
                result = subprocess.run([PROGRAM, *map(str, arguments)], stdout=full, stderr=subprocess.PIPE, text=True)
                self.assertEqual(result.returncode, FAILED, arguments)
                self.assertIn("lycoris: ", result.stderr)


class Interrupts(ProgramTest):
    def test_interrupted_merges_leave_nothing(self):
        adapter = self.folder / "a.safetensors"
        write_large_merge(self.base, adapter)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.out.write_text("old")
            self.inputs = self.names()
            process = subprocess.Popen([PROGRAM, "merge", self.base, adapter, "-o", self.out, "--force", "--threads", "2"],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            process.stderr.readline()  # it has begun
            time.sleep(0.05)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, out), (FAILED, ""))
            self.assertIn("cancelled", err.splitlines()[-1])
            self.assertEqual(self.names(), self.inputs)
            self.assertEqual(self.out.read_text(), "old")


class Terminal(ProgramTest):
    def on_terminal(self, *arguments):
        """Status, and what a terminal on stderr saw."""
        leader, follower = pty.openpty()
        process = subprocess.Popen([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=follower)
        os.close(follower)
        seen = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # how a terminal ends
                break
            if not part:
                break
            seen += part
        process.communicate()
        os.close(leader)
        return process.returncode, seen.decode()

    def test_a_terminal_shows_a_bar(self):
        code, seen = self.on_terminal("merge", self.base, self.style, "-o", self.out)
        self.assertEqual(code, DONE)
        self.assertIn("[====", seen)
        self.assertIn("100 %", seen)
        self.assertTrue(seen.endswith("\r\x1b[K"), "the bar is wiped away in the end")

    def test_a_failure_has_a_line_of_its_own(self):
        code, seen = self.on_terminal("merge", self.base, self.style, "-o", "/proc/x.safetensors")
        self.assertEqual(code, FAILED)
        self.assertIn("lycoris: ", seen.split("\x1b[K")[-1])

    def test_quiet_shows_none(self):
        self.assertEqual(self.on_terminal("merge", self.base, self.style, "-o", self.out, "--quiet"), (DONE, ""))

    def test_elsewhere_there_are_lines(self):
        result = self.merge()
        self.assertNotIn("\r", result.stderr)
        self.assertIn("100 %", result.stderr.splitlines()[-1])


class Inspecting(ProgramTest):
    def test_adapter(self):
        result = run("inspect", self.style)
        self.assertEqual((result.returncode, result.stderr), (DONE, ""))
        for word in (f"{self.style}: adapter", "dialect", "locon", "dora", "norm", "rank"):
            self.assertIn(word, result.stdout)

    def test_adapter_as_json(self):
        report = json.loads(run("inspect", self.detail, "--json").stdout)
        self.assertEqual(report["kind"], "adapter")
        self.assertEqual(sorted(report["algorithms"]), ["locon", "loha", "lokr"])
        self.assertTrue(all(layer["norm"] > 0 for layer in report["layers"]))

    def test_model(self):
        result = run("inspect", self.base)
        self.assertEqual((result.returncode, result.stderr), (DONE, ""))
        self.assertIn(f"{self.base}: model", result.stdout)
        self.assertIn("BF16", result.stdout)
        self.assertEqual(json.loads(run("inspect", self.base, "--json").stdout)["kind"], "model")

    def test_merged_model_shows_what_was_done(self):
        self.merge("--quiet")
        report = json.loads(run("inspect", self.out, "--json").stdout)
        self.assertIn("style.safetensors", report["metadata"]["lycoris.operations"])

    def test_other_things(self):
        pickle = self.folder / "x.pt"
        pickle.write_bytes(b"PK\x03\x04" + bytes(100))
        self.inputs = self.names()
        self.assert_fails(run("inspect", pickle), FAILED, "x.pt")
        self.assert_fails(run("inspect", self.folder / "none"), FAILED, "none")
        self.assert_fails(run("inspect", "/dev/null"), FAILED, "/dev/null")

    def test_names_cannot_play_with_the_terminal(self):
        evil = self.folder / "evil.safetensors"
        write_zeros(evil, {"lycoris_\x1b[31mred\n.diff": [4, 4]}, "F32")
        self.inputs = self.names()
        self.assertNotIn("\x1b", run("inspect", evil).stdout)
        result = run("merge", self.base, evil, "-o", self.out)
        self.assertNotIn("\x1b", result.stderr)
        self.assert_fails(result, FAILED, "evil.safetensors")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
