"""The Python package: what the header promises, as Python sees it. Standard library only; NumPy where it is there."""
import array
import gc
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

import liblycoris
from liblycoris import native

try:
    import numpy
except ImportError:
    numpy = None

ROWS, COLUMNS, RANK, ALPHA = 5, 7, 2, 3.0


def matrix(rows, columns, values=None):
    """A writable f32 matrix without NumPy."""
    flat = array.array("f", values if values is not None else [0.0] * (rows * columns))
    return memoryview(flat).cast("B").cast("f", [rows, columns])


def numbers(count, seed):
    """Multiples of 1/8, so that sums are exact in f32."""
    generator = random.Random(seed)
    return [generator.randint(-16, 16) / 8 for _ in range(count)]


def product(up, down, scale):
    """scale * up @ down, as lists of rows."""
    return [[scale * sum(up[o][r] * down[r][i] for r in range(RANK)) for i in range(COLUMNS)] for o in range(ROWS)]


class Layer:
    """A LoRA of one layer, and what it does in plain Python."""

    def __init__(self):
        self.up = matrix(ROWS, RANK, numbers(ROWS * RANK, 1))
        self.down = matrix(RANK, COLUMNS, numbers(RANK * COLUMNS, 2))
        self.base = matrix(ROWS, COLUMNS, numbers(ROWS * COLUMNS, 3))
        self.delta = product(self.up.tolist(), self.down.tolist(), ALPHA / RANK)

    def tensors(self):
        alpha = memoryview(array.array("f", [ALPHA])).cast("B").cast("f", ())
        return {"lora_up.weight": self.up, "lora_down.weight": self.down, "alpha": alpha}

    def module(self, context):
        return liblycoris.Module.from_tensors(context, self.tensors())

    def merged(self, multiplier):
        return [[w + multiplier * d for w, d in zip(*rows)] for rows in zip(self.base.tolist(), self.delta)]


class Case(unittest.TestCase):
    def setUp(self):
        self.context = liblycoris.Context(threads=2)
        self.layer = Layer()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_near(self, found, expected, tolerance=1e-5):
        self.assertEqual(len(found), len(expected))
        for row, (left, right) in enumerate(zip(found, expected)):
            for column, (x, y) in enumerate(zip(left, right)):
                self.assertAlmostEqual(x, y, delta=tolerance, msg=f"at [{row}][{column}]")

    def write_adapter(self):
        """An adapter and a base that belongs to it."""
        adapter, base = self.folder / "style.safetensors", self.folder / "model.safetensors"
        liblycoris.save_file(adapter, {f"lora_unet_mid_proj.{k}": v for k, v in self.layer.tensors().items()},
                             {"ss_network_module": "networks.lora"})
        liblycoris.save_file(base, {"mid.proj.weight": self.layer.base, "mid.proj.bias": matrix(1, 4)})
        return adapter, base


class Library(Case):
    def test_struct_sizes_agree(self):
        probe = os.environ.get("LYCORIS_LAYOUT_PROBE")
        if not probe:
            self.skipTest("LYCORIS_LAYOUT_PROBE does not name the program layout_probe")
        for line in subprocess.check_output([probe], text=True).splitlines():
            name, value = line.split()
            if name.startswith("lyc_") and "." not in name:
                self.assertEqual(native.struct_size(name), int(value), name)

    def test_names(self):
        self.assertEqual(native.dtype_name(native.DTYPE_BF16), "bf16")
        self.assertEqual(native.algo_from_name("lora"), native.ALGO_LOCON)
        self.assertRegex(liblycoris.__version__, r"^\d+\.\d+\.\d+")

    def test_context(self):
        self.assertEqual(self.context.device, "cpu")
        self.assertEqual(self.context.threads, 2)
        self.assertGreaterEqual(native.device_get_info(native.DEVICE_CPU, 0).multiprocessors, 1)

    def test_long_text_comes_whole(self):
        text = liblycoris.backend_explain("cuda")
        self.assertIsInstance(text, str)

    def test_every_function_is_here_or_left_out_for_a_reason(self):
        header = (pathlib.Path(__file__).parents[2] / "include" / "lycoris.h").read_text()
        left_out = ("_retain", "_release", "_options_init", "_info_init", "exec_init", "layer_init",  # the proxies' own
                    "tensor_init", "tensor_slice")  # Tensor.zeros, Tensor.slice
        for line in header.splitlines():
            if line.startswith("LYC_API"):
                name = line[:line.index("(")].split("lyc_")[-1]
                if not name.endswith(left_out):
                    self.assertTrue(hasattr(native, name), name)


class Errors(Case):
    def test_class_and_message(self):
        with self.assertRaises(liblycoris.NotFoundError) as caught:
            liblycoris.File(self.folder / "missing.safetensors")
        self.assertIsInstance(caught.exception, FileNotFoundError)
        self.assertEqual(caught.exception.errno, 2)
        self.assertIn("missing.safetensors", str(caught.exception))
        self.assertEqual(caught.exception.native_code, 2)

    def test_damaged_file(self):
        with self.assertRaises(liblycoris.FormatError):
            liblycoris.File(b"\xff" * 16)

    def test_argument(self):
        with self.assertRaisesRegex(liblycoris.ArgumentError, "rank"):
            liblycoris.Module.create(self.context, "locon", [8, 8], rank=-1)
        with self.assertRaisesRegex(ValueError, "'fp32' is none of"):
            liblycoris.Tensor.zeros([2], "fp32")

    def test_unsupported(self):
        if liblycoris.device_count("cuda") == 0:
            with self.assertRaises((liblycoris.UnsupportedError, liblycoris.NotFoundError)):
                liblycoris.Context("cuda")

    def test_mismatch(self):
        with self.assertRaises(liblycoris.MismatchError):
            self.layer.module(self.context).diff_weight(out=matrix(3, 3))

    def test_not_a_tensor(self):
        with self.assertRaises(TypeError):
            self.layer.module(self.context).merge("weights")


class Tensors(Case):
    def test_buffers(self):
        tensor = liblycoris.Tensor(self.layer.base, layout="hwio")
        self.assertEqual((tensor.shape, tensor.strides, tensor.dtype, tensor.layout, tensor.device),
                         ((ROWS, COLUMNS), (COLUMNS, 1), "f32", "hwio", "cpu"))
        self.assertTrue(liblycoris.Tensor(bytes(4)).read_only)

    def test_dlpack_round_trip(self):
        for max_version in (None, (1, 0)):
            class Old:
                """A producer that knows no keywords, or the same with them."""
                def __dlpack__(self, **keywords):
                    if max_version is None and keywords:
                        raise TypeError("unexpected keyword")
                    return source.__dlpack__(max_version=max_version)
            source = liblycoris.Tensor.zeros([2, 3], "bf16")
            tensor = liblycoris.Tensor(Old())
            self.assertEqual((tensor.address, tensor.shape, tensor.dtype), (source.address, (2, 3), "bf16"))
            del source
            gc.collect()
            self.assertEqual(tensor.shape, (2, 3))

    def test_slice_keeps_memory(self):
        part = liblycoris.Tensor.zeros([6, 4]).slice(0, 2, 3)
        gc.collect()
        self.assertEqual(part.shape, (3, 4))
        with self.assertRaises(liblycoris.ArgumentError):
            part.slice(0, 2, 3)

    @unittest.skipUnless(numpy, "NumPy is not installed")
    def test_numpy(self):
        array = numpy.arange(24, dtype="f4").reshape(4, 6)
        tensor = liblycoris.Tensor(array.T[::2])
        self.assertEqual((tensor.shape, tensor.strides), ((3, 4), (2, 6)))
        self.assertEqual(tensor.address, array.ctypes.data)
        array.flags.writeable = False
        self.assertTrue(liblycoris.Tensor(array).read_only)
        zeros = liblycoris.Tensor.zeros([2, 2])
        shared = numpy.asarray(zeros)
        shared[1, 0] = 5
        self.assertEqual(numpy.from_dlpack(zeros)[1, 0], 5)
        del zeros
        gc.collect()
        self.assertEqual(shared[1, 0], 5)


class Files(Case):
    def test_write_and_read(self):
        path = self.folder / "blé.safetensors"
        liblycoris.save_file(path, {"a": self.layer.base, "b": bytes([1, 2, 3])}, {"größe": "7"})
        for source in (path, path.read_bytes()):
            file = liblycoris.File(source)
            self.assertEqual(sorted(file), ["a", "b"])
            self.assertEqual(file.metadata["größe"], "7")
            self.assertEqual(file.describe("a"), ("f32", (ROWS, COLUMNS)))
            self.assertEqual(bytes(file["b"]._view.memory()), bytes([1, 2, 3]))
            self.assertEqual(struct.unpack(f"{ROWS * COLUMNS}f", file["a"]._view.memory()), tuple(
                x for row in self.layer.base.tolist() for x in row))
            self.assertNotIn("c", file)
            with self.assertRaises(KeyError) as caught:
                file["c"]
            self.assertIsInstance(caught.exception, liblycoris.NotFoundError)

    def test_a_name_twice(self):
        writer = native.writer_create(str(self.folder / "x.safetensors"))
        view = liblycoris.Tensor.zeros([2])._view
        native.writer_add(writer, "a", view)
        with self.assertRaises(liblycoris.ArgumentError):
            native.writer_add(writer, "a", view)


class Modules(Case):
    def test_description(self):
        module = self.layer.module(self.context)
        self.assertEqual((module.algo, module.rank, module.alpha, module.scale), ("locon", RANK, ALPHA, ALPHA / RANK))
        self.assertEqual(module.shape, (ROWS, COLUMNS))
        self.assertFalse(module.needs_base)

    def test_diff_weight(self):
        out = matrix(ROWS, COLUMNS)
        module = self.layer.module(self.context)
        module.diff_weight(multiplier=0.5, out=out)
        self.assert_near(out.tolist(), [[0.5 * d for d in row] for row in self.layer.delta])
        fresh = module.diff_weight()
        self.assertEqual((fresh.shape, fresh.dtype), ((ROWS, COLUMNS), "f32"))

    def test_merge_and_unmerge(self):
        module, before = self.layer.module(self.context), self.layer.base.tolist()
        expected = self.layer.merged(0.25)
        module.merge(self.layer.base, 0.25)
        self.assert_near(self.layer.base.tolist(), expected)
        module.unmerge(self.layer.base, 0.25)
        self.assert_near(self.layer.base.tolist(), before)

    def test_layout(self):
        transposed = matrix(COLUMNS, ROWS)
        self.layer.module(self.context).diff_weight(out=transposed, layout="hwio")
        self.assert_near([list(row) for row in zip(*transposed.tolist())], self.layer.delta)

    def test_read_only_weight(self):
        with self.assertRaises(liblycoris.ArgumentError):
            self.layer.module(self.context).merge(self.layer.base.toreadonly())

    def test_parameters(self):
        module = liblycoris.Module.create(self.context, "locon", [ROWS, COLUMNS], rank=RANK, alpha=ALPHA)
        names = list(module.parameters())
        self.assertTrue({"lora_up.weight", "lora_down.weight"} <= set(names), names)
        module.write("lora_up.weight", self.layer.up)
        module.bind("lora_down.weight", self.layer.down)
        self.assertEqual(bytes(module.read("lora_up.weight")._view.memory()), self.layer.up.tobytes())
        out = matrix(ROWS, COLUMNS)
        module.diff_weight(out=out)
        self.assert_near(out.tolist(), self.layer.delta)
        with self.assertRaises(KeyError):
            module.read("lora_mid.weight")

    def test_the_context_may_go_first(self):
        module = self.layer.module(self.context)
        del self.context
        gc.collect()
        module.merge(self.layer.base)

    def test_bound_memory_outlives_its_name(self):
        module = liblycoris.Module.create(self.context, "locon", [ROWS, COLUMNS], rank=RANK, alpha=ALPHA)
        module.bind("lora_up.weight", matrix(ROWS, RANK, self.layer.up.cast("B").cast("f").tolist()))
        module.bind("lora_down.weight", matrix(RANK, COLUMNS, self.layer.down.cast("B").cast("f").tolist()))
        batch = liblycoris.Batch.create(self.context, [{"module": module, "base": self.layer.base}])
        expected = self.layer.merged(1.0)
        del module
        gc.collect()
        batch.merge()
        self.assert_near(self.layer.base.tolist(), expected)

    def test_threads(self):
        module = self.layer.module(self.context)

        def work():
            for _ in range(20):
                out = matrix(ROWS, COLUMNS)
                module.diff_weight(out=out)
                self.assert_near(out.tolist(), self.layer.delta)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Batches(Case):
    def test_operations(self):
        out = matrix(ROWS, COLUMNS)
        items = [{"module": self.layer.module(self.context), "base": self.layer.base, "out": out,
                  "multiplier_index": 0}]
        batch = liblycoris.Batch.create(self.context, items)
        batch.merge([0.5])
        self.assert_near(out.tolist(), self.layer.merged(0.5))
        batch.diff([2.0])
        self.assert_near(out.tolist(), [[2 * d for d in row] for row in self.layer.delta])
        self.assertGreaterEqual(batch.workspace_size, 0)
        self.assertTrue(batch.explain())

    def test_unknown_key(self):
        with self.assertRaisesRegex(TypeError, "'bias'"):
            liblycoris.Batch.create(self.context, [{"module": self.layer.module(self.context), "bias": None}])


class Networks(Case):
    def test_merge_into(self):
        adapter, _ = self.write_adapter()
        network = liblycoris.load_network(adapter, context=self.context)
        self.assertEqual(len(network), 1)
        name = next(iter(network))
        self.assertEqual(network[name].rank, RANK)
        expected = self.layer.merged(0.8)
        report = network.merge_into({"mid.proj.weight": self.layer.base, "other": matrix(2, 2)}, multiplier=0.8)
        self.assert_near(self.layer.base.tolist(), expected)
        self.assertEqual((report.layers, report.matched), (1, 1))

    def test_no_home(self):
        adapter, _ = self.write_adapter()
        network = liblycoris.load_network(adapter, context=self.context)
        with self.assertRaises(liblycoris.MismatchError):
            network.merge_into({"other.weight": matrix(2, 2)})
        both = self.folder / "both.safetensors"
        liblycoris.save_file(both, {f"lora_unet_{layer}.{key}": value for layer in ("mid_proj", "mid_other")
                                    for key, value in self.layer.tensors().items()})
        network, weights = liblycoris.load_network(both, context=self.context), {"mid.proj.weight": self.layer.base}
        with self.assertRaisesRegex(liblycoris.MismatchError, "mid_other"):
            network.merge_into(weights)
        report = network.merge_into(weights, allow_unmatched=True)
        self.assertEqual((report.matched, report.unmatched), (1, 1))

    def test_a_batch_keeps_what_it_needs(self):
        adapter, _ = self.write_adapter()
        expected = self.layer.merged(1.0)
        batch, _ = liblycoris.match([liblycoris.load_network(adapter, context=self.context)],
                                    {"mid.proj.weight": self.layer.base})
        del self.context
        gc.collect()
        batch.merge()
        self.assert_near(self.layer.base.tolist(), expected)


class WholeFiles(Case):
    def merge(self, **options):
        adapter, base = self.write_adapter()
        self.out = self.folder / "out.safetensors"
        return liblycoris.merge_files(base, [adapter], self.out, context=self.context, **options)

    def merged(self):
        values = struct.unpack(f"{ROWS * COLUMNS}f", liblycoris.File(self.out)["mid.proj.weight"]._view.memory())
        return [values[i:i + COLUMNS] for i in range(0, len(values), COLUMNS)]

    def test_merge(self):
        report = self.merge(multiplier=0.5)
        self.assert_near(self.merged(), self.layer.merged(0.5))
        self.assertEqual((report.layers, report.matched, report.changed, report.tensors), (1, 1, 1, 2))
        self.assertIsInstance(report.to_dict(), dict)

    def test_multiplier_rules(self):
        self.merge(multiplier=[(None, -1, 1.0), ("mid.*", 0, 0.25)])
        self.assert_near(self.merged(), self.layer.merged(0.25))

    def test_no_silent_overwrite(self):
        self.merge()
        with self.assertRaises(liblycoris.ArgumentError):
            self.merge()
        self.merge(overwrite=True)

    def test_progress(self):
        seen = []
        self.merge(progress=lambda done, total: seen.append((done, total)))
        self.assertTrue(seen)
        self.assertTrue(all(done <= total for done, total in seen))

    def test_cancel(self):
        with self.assertRaises(liblycoris.CancelledError):
            self.merge(progress=lambda done, total: True)
        self.assertFalse(self.out.exists())

    def test_an_exception_in_progress_comes_through(self):
        def failing(done, total):
            raise ZeroDivisionError("from the callback")
        with self.assertRaisesRegex(ZeroDivisionError, "from the callback"):
            self.merge(progress=failing)
        self.assertFalse(self.out.exists())
        self.merge()

    def test_inspect(self):
        adapter, _ = self.write_adapter()
        self.assertIsInstance(liblycoris.inspect_file(adapter, context=self.context), dict)


class Leaks(Case):
    def test_many_calls_do_not_grow(self):
        module = self.layer.module(self.context)
        out = matrix(ROWS, COLUMNS)
        before = sys.getrefcount(out)
        for _ in range(200):
            module.diff_weight(out=out)
            try:
                module.diff_weight(out=self.layer.up)
            except liblycoris.MismatchError:
                pass
        self.assertEqual(sys.getrefcount(out), before)


class Import(unittest.TestCase):
    def test_import_starts_nothing(self):
        code = "import liblycoris, threading, os; print(len(os.listdir('/proc/self/task')))"
        if os.path.isdir("/proc/self/task"):
            self.assertEqual(subprocess.check_output([sys.executable, "-c", code]).strip(), b"1")


if __name__ == "__main__":
    unittest.main()
