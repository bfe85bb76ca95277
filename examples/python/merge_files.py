"""Merge an adapter into a model, file to file: merge_files.py MODEL ADAPTER OUT [MULTIPLIER]"""
import sys

import liblycoris

model, adapter, out = sys.argv[1:4]
multiplier = float(sys.argv[4]) if len(sys.argv) > 4 else 0.8

try:
    report = liblycoris.merge_files(model, [adapter], out, multiplier=multiplier, overwrite=True, progress=True)
except liblycoris.Error as error:
    sys.exit(f"merge_files: {error}")
print(f"{report.matched} of {report.layers} layers, {report.seconds:.1f} s")
