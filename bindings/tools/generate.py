#!/usr/bin/env python3
"""Generate what SWIG cannot write itself, from SWIG's own reading of the header.

    swig -xml bindings/lycoris.i  ->  a small model  ->  bindings/rust/lycoris-sys/src/ffi.rs   declarations for Rust
                                                         bindings/csharp/Interop.cs             structs, enums, handles for C#
                                                         tests/bindings/layout_probe.c          prints sizes, offsets, values

The results are checked in, so that users need no SWIG. `--check` compares instead of writing (target bindings-check).
Standard library only; SWIG 4.1 and later give the same text.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# ---- The model ------------------------------------------------------------------------------------------------------
# Types are nested tuples: ("name", "size_t"), ("pointer", target, target_is_const), ("array", count, element).

Parameter = namedtuple("Parameter", "name type")
Constant = namedtuple("Constant", "name value")
Enum = namedtuple("Enum", "name alias items")  # items: Constants
Opaque = namedtuple("Opaque", "name alias")
Struct = namedtuple("Struct", "name alias fields")  # fields: Parameters
Callback = namedtuple("Callback", "name result parameters")  # result: a type, or None for void
Function = namedtuple("Function", "name result parameters")
Model = namedtuple("Model", "constants enums opaques structs callbacks functions docs")


def parse_type(text):
    """SWIG writes types outside in: p.q(const).char is a pointer to const char."""
    if text.startswith("p."):
        rest = text[2:]
        const = rest.startswith("q(const).")
        return ("pointer", parse_type(rest[len("q(const)."):] if const else rest), const)
    if text.startswith("q(const)."):  # const of the value itself means nothing across a call
        return parse_type(text[len("q(const)."):])
    array = re.match(r"a\((\d+)\)\.(.*)", text)
    if array:
        return ("array", int(array[1]), parse_type(array[2]))
    return ("name", re.sub(r"^(struct|enum) ", "", text))


def attributes(node):
    return {a.get("name"): a.get("value") for a in node.findall("attributelist/attribute")}


def parameters(node):
    found = (attributes(p) for p in node.findall("attributelist/parmlist/parm"))
    return [Parameter(p["name"], parse_type(p["type"])) for p in found if p["type"] != "void"]


def result_type(declarator, base):
    """`f(int).p.` and `q(const).char`: the result is a pointer to const char."""
    depth = 0
    for position, char in enumerate(declarator):
        depth += (char == "(") - (char == ")")
        if depth == 0 and char == ")":
            break
    result = declarator[position + 2:] + base
    return None if result == "void" else parse_type(result)


def read_model(xml_path, header_path):
    model = Model([], [], [], [], [], [], docs_of(header_path.read_text()))
    include = next(i for i in ElementTree.parse(xml_path).iter("include")
                   if os.path.basename(attributes(i)["name"]) == "lycoris.h")
    for node in include.iter():
        a = attributes(node)
        if node.tag == "constant":
            model.constants.append(Constant(a["name"], int(a["value"], 0)))
        elif node.tag == "enum":
            items = [attributes(i) for i in node.findall("enumitem")]
            model.enums.append(Enum(a["name"], a["sym_name"],
                                    [Constant(i["name"], int(i["enumvalue"], 0)) for i in items]))
        elif node.tag == "class":
            fields = [attributes(f) for f in node.findall("cdecl")]
            model.structs.append(Struct(a["name"], a["sym_name"],
                                        [Parameter(f["name"], parse_type(f["decl"] + f["type"])) for f in fields]))
        elif node.tag == "cdecl" and a.get("kind") == "function":
            model.functions.append(Function(a["name"], result_type(a["decl"], a["type"]), parameters(node)))
        elif node.tag == "cdecl" and a.get("storage") == "typedef":
            if a["decl"].startswith("p.f("):
                model.callbacks.append(Callback(a["name"], result_type(a["decl"][2:], a["type"]), parameters(node)))
            elif a["type"] == "struct " + a["name"]:
                model.opaques.append(Opaque(a["name"], pascal(a["name"][4:])))
    defined = {s.name for s in model.structs}
    model.opaques[:] = [o for o in model.opaques if o.name not in defined]
    return model


def docs_of(header):
    """Name -> comment: the one in front of a declaration, or the one behind a field, enumerator or constant."""
    def clean(comment):
        return re.sub(r"\s*\n\s*\*?\s*", " ", comment.strip().rstrip("*").strip())

    docs = {}
    for comment, code in re.findall(r"/\*\*(?!<)(.*?)\*/\s*([^\n]*)", header, re.S):
        name = re.search(r"\(\*(lyc_\w+)\)|(lyc_\w+)\(|^typedef \w+ (lyc_\w+)|#define (LYC_\w+)", code)
        if name:
            docs[next(filter(None, name.groups()))] = clean(comment)
    for typedef in re.finditer(r"typedef (?:struct|enum) (lyc_\w+) \{(.*?)\n\}", header, re.S):
        pattern = r"\b(\w+)(?:\[\w+\])?\s*(?:;|=\s*\w+\s*,?)\s*/\*\*<(.*?)\*/"
        for name, comment in re.findall(pattern, typedef[2], re.S):
            docs[name if name.startswith("LYC_") else f"{typedef[1]}.{name}"] = clean(comment)
    for name, comment in re.findall(r"#define (LYC_\w+)[^\n/]*/\*\*<(.*?)\*/", header, re.S):
        docs[name] = clean(comment)
    return docs


def short_names(enum):
    """LYC_DTYPE_F32 -> F32: without what all enumerators begin with; the forcing one is left out."""
    items = [i for i in enum.items if not i.name.endswith("_FORCE_INT32_")]
    prefix = os.path.commonprefix([i.name for i in items])
    prefix = prefix[:prefix.rindex("_") + 1]
    return [(i.name[len(prefix):], i) for i in items]


def pascal(name):
    return "".join(word[:1].upper() + word[1:].lower() for word in name.split("_"))


# ---- Rust -----------------------------------------------------------------------------------------------------------

RUST_NAMES = {"void": "c_void", "char": "c_char", "int8_t": "i8", "uint8_t": "u8", "int32_t": "i32", "uint32_t": "u32",
              "int64_t": "i64", "uint64_t": "u64", "size_t": "usize", "float": "f32", "double": "f64"}
RUST_KEYWORDS = {"type": "kind"}


def rust_type(t):
    if t[0] == "pointer":
        return f"*{'const' if t[2] else 'mut'} {rust_type(t[1])}"
    if t[0] == "array":
        return f"[{rust_type(t[2])}; {t[1]}]"
    return RUST_NAMES.get(t[1], t[1])


def rust_doc(docs, name, indent=""):
    lines = textwrap.wrap(docs.get(name, ""), 110 - len(indent), break_long_words=False, break_on_hyphens=False)
    return [f"{indent}/// {line}" for line in lines]


def rust_signature(entry):
    arguments = ", ".join(f"{RUST_KEYWORDS.get(p.name, p.name)}: {rust_type(p.type)}" for p in entry.parameters)
    return f"({arguments})" + (f" -> {rust_type(entry.result)}" if entry.result else "")


def rust(model):
    docs = {name: re.sub(r"([\[\]])", r"\\\1", re.sub(r"(?<!\[)\b(lyc_\w+)(\(\))?", r"`\1\2`", doc))
            for name, doc in model.docs.items()}
    out = ["// Made by bindings/tools/generate.py from include/lycoris.h; do not edit.", ""]
    for c in model.constants:
        out += rust_doc(docs, c.name) + [f"pub const {c.name}: u32 = {c.value};"]
    for e in model.enums:
        out += ["", "enumeration! {"] + rust_doc(docs, e.name, "    ") + [f"    {e.name} {{"]
        for short, item in short_names(e):
            out += rust_doc(docs, item.name, "        ") + [f"        {short} = {item.value},"]
        out += ["    }", "}"]
    out += ["", "opaque! { " + ", ".join(o.name for o in model.opaques) + " }"]
    for c in model.callbacks:
        out += [""] + rust_doc(docs, c.name)
        out += [f"pub type {c.name} = Option<unsafe extern \"C\" fn{rust_signature(c)}>;"]
    for s in model.structs:
        out += [""] + rust_doc(docs, s.name) + ["#[repr(C)]", "#[derive(Clone, Copy, Debug)]", f"pub struct {s.name} {{"]
        for f in s.fields:
            out += rust_doc(docs, f"{s.name}.{f.name}", "    ") + [f"    pub {f.name}: {rust_type(f.type)},"]
        out += ["}"]
    out += ["", "layout! {"]
    for s in model.structs:
        out += textwrap.wrap(f"{s.name} {{ {', '.join(f.name for f in s.fields)} }}", 110,
                             initial_indent="    ", subsequent_indent="        ")
    out += ["}", "", "functions! {"]
    for f in model.functions:
        out += rust_doc(docs, f.name, "    ") + [f"    fn {f.name}{rust_signature(f)};"]
    return "\n".join(out + ["}"]) + "\n"


# ---- C# -------------------------------------------------------------------------------------------------------------

CSHARP_NAMES = {"char": "byte", "int8_t": "sbyte", "uint8_t": "byte", "int32_t": "int", "uint32_t": "uint",
                "int64_t": "long", "uint64_t": "ulong", "size_t": "UIntPtr", "float": "float", "double": "double",
                "void": "void"}


def csharp_field(model, field):
    """Blittable: handles, callbacks and memory are IntPtr; structs are pointers; arrays are fixed buffers."""
    aliases = {x.name: x.alias for x in model.structs + model.enums}
    hidden = {x.name for x in model.opaques + model.callbacks}

    def name_of(t):
        if t[0] == "pointer":
            opaque = t[1][0] == "name" and (t[1][1] in hidden or t[1][1] == "void")
            return "IntPtr" if opaque else name_of(t[1]) + "*"
        return "IntPtr" if t[1] in hidden else aliases.get(t[1]) or CSHARP_NAMES[t[1]]

    if field.type[0] == "array":
        return f"fixed {name_of(field.type[2])} {pascal(field.name)}[{field.type[1]}]"
    return f"{name_of(field.type)} {pascal(field.name)}"


def csharp_doc(docs, name, indent):
    text = docs.get(name, "").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if not text:
        return []
    lines = textwrap.wrap(f"<summary>{text}</summary>", 110 - len(indent), break_long_words=False)
    return [f"{indent}/// {line}" for line in lines]


def csharp(model):
    out = ["// Made by bindings/tools/generate.py from include/lycoris.h; do not edit.",
           "using System;", "using System.Runtime.InteropServices;", "", "namespace LibLycoris {"]
    for e in model.enums:
        out += csharp_doc(model.docs, e.name, "  ") + [f"  public enum {e.alias} {{"]
        for short, item in short_names(e):
            words = pascal(short) if e.alias not in ("DType", "Layout") else short
            out += csharp_doc(model.docs, item.name, "    ") + [f"    {words} = {item.value},"]
        out += ["  }", ""]
    out += ["}", "", "namespace LibLycoris.Interop {", "  internal static class Constants {"]
    out += [f"    internal const uint {pascal(c.name[4:])} = {c.value};" for c in model.constants] + ["  }", ""]
    for c in model.callbacks:
        arguments = ", ".join(csharp_field(model, p._replace(name=p.name)) for p in c.parameters)
        result = csharp_field(model, Parameter("", c.result)).strip() if c.result else "void"
        out += ["  [UnmanagedFunctionPointer(CallingConvention.Cdecl)]",
                f"  internal delegate {result} {pascal(c.name[4:])}({arguments});", ""]
    for s in model.structs:
        out += ["  [StructLayout(LayoutKind.Sequential)]", f"  internal unsafe struct {s.alias} {{"]
        out += [f"    internal {csharp_field(model, f)};" for f in s.fields] + ["  }", ""]
    for o in model.opaques:
        out += [f"  internal sealed class {o.alias}Handle : SafeHandle {{",
                f"    public {o.alias}Handle() : base(IntPtr.Zero, true) {{ }}",
                "    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }",
                "    protected override bool ReleaseHandle() { Release(handle); return true; }",
                f'    [DllImport("lycoris", CallingConvention = CallingConvention.Cdecl, EntryPoint = "{o.name}_release")]',
                f"    private static extern void Release(IntPtr {o.name[4:]});", "  }", ""]
    return "\n".join(out[:-1] + ["}"]) + "\n"


# ---- C --------------------------------------------------------------------------------------------------------------


def layout_probe(model):
    out = ["/* Made by bindings/tools/generate.py from include/lycoris.h; do not edit.",
           " * Prints sizes, offsets and values as the C compiler sees them, for the bindings' tests to compare with. */",
           '#include "lycoris.h"', "", "#include <stdio.h>", "",
           '#define SIZE(type) printf("%s %u\\n", #type, (unsigned)sizeof(type))',
           '#define OFFSET(type, field) printf("%s.%s %u\\n", #type, #field, (unsigned)offsetof(type, field))',
           '#define VALUE(name) printf("%s %d\\n", #name, (int)(name))', "", "int main(void) {"]
    for s in model.structs:
        out += [f"  SIZE({s.name});"] + [f"  OFFSET({s.name}, {f.name});" for f in s.fields]
    out += [f"  VALUE({i.name});" for e in model.enums for i in e.items] + [f"  VALUE({c.name});" for c in model.constants]
    return "\n".join(out + ["  return 0;", "}"]) + "\n"


# ---- The program ----------------------------------------------------------------------------------------------------

OUTPUTS = {"bindings/rust/lycoris-sys/src/ffi.rs": rust,
           "bindings/csharp/Interop.cs": csharp,
           "tests/bindings/layout_probe.c": layout_probe}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--swig", default="swig", help="the SWIG program")
    arguments.add_argument("--check", action="store_true", help="fail if a checked-in file is not up to date")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "lycoris.xml"
        subprocess.run([options.swig, "-xml", "-xmllite", f"-I{ROOT / 'include'}", "-o", str(xml),
                        str(ROOT / "bindings" / "lycoris.i")], check=True)
        model = read_model(xml, ROOT / "include" / "lycoris.h")
    stale = []
    for path, backend in OUTPUTS.items():
        file, text = ROOT / path, backend(model)
        if file.exists() and file.read_text() == text:
            continue
        stale.append(path)
        if not options.check:
            file.write_text(text)
    for path in stale:
        print(path, "is not up to date: run bindings/tools/generate.py" if options.check else "written")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
