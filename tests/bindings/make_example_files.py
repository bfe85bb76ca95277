"""A base model of two layers and an adapter for one of them, for the examples: make_example_files.py FOLDER"""
import array
import pathlib
import shutil
import sys

import liblycoris


def matrix(rows, columns, step):
    values = array.array("f", (((i * step) % 31 - 15) / 8 for i in range(rows * columns)))
    return memoryview(values).cast("B").cast("f", [rows, columns])


folder = pathlib.Path(sys.argv[1])
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
liblycoris.save_file(folder / "model.safetensors", {
    "transformer.blocks.0.attn.to_q.weight": matrix(24, 16, 5),
    "transformer.blocks.0.attn.to_k.weight": matrix(24, 16, 3)})
liblycoris.save_file(folder / "style.safetensors", {
    "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": matrix(4, 16, 7),
    "lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight": matrix(24, 4, 11)})
