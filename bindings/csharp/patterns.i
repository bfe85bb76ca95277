/*
 * C#: one typemap for each pattern of ../lycoris.i. The result is the class Native, whose methods call the C functions
 * themselves: every typemap only casts, so that tools/direct_pinvoke.py may leave the C wrappers out. Structs, enums and
 * handles are in Interop.cs, made by tools/generate.py, because SWIG has no blittable structs.
 */
%pragma(csharp) moduleclassmodifiers="internal static unsafe class"
%pragma(csharp) imclassclassmodifiers="internal static unsafe class"
%pragma(csharp) moduleimports="using System;"
%pragma(csharp) imclassimports="using System;"

%rename("$ignore", %$isenumitem) "";
%rename("$ignore", %$isconstant) "";
%ignore LYC_API;

/* ---- Numbers and memory ------------------------------------------------------------------------------------------ */

%typemap(ctype) size_t "size_t"
%typemap(imtype) size_t "UIntPtr"
%typemap(cstype) size_t "ulong"
%typemap(csin) size_t "new UIntPtr($csinput)"
%typemap(csout, excode="") size_t "{ return (ulong)$imcall; }"


%typemap(imtype) size_t *out_count, size_t *out_index, size_t *out_length "out UIntPtr"
%typemap(cstype) size_t *out_count, size_t *out_index, size_t *out_length "out ulong"
%typemap(csin, pre="    UIntPtr made_$csinput = UIntPtr.Zero;", post="      $csinput = (ulong)made_$csinput;")
    size_t *out_count, size_t *out_index, size_t *out_length "out made_$csinput"

%define LYC_BLITTABLE(T, CSHARP)
%typemap(imtype) T "CSHARP"
%typemap(cstype) T "CSHARP"
%enddef
%define LYC_BLITTABLE_OUT(T, CSHARP)
LYC_BLITTABLE(T, CSHARP)
%typemap(csin) T "out $csinput"
%enddef
%define LYC_BLITTABLE_IN(T, CSHARP)
LYC_BLITTABLE(T, CSHARP)
%typemap(csin) T "$csinput"
%enddef
LYC_BLITTABLE_IN(int64_t, long) /* for SWIG a C long, whose C# type would be int */
LYC_BLITTABLE_IN(uint64_t, ulong)
LYC_BLITTABLE_OUT(uint64_t *out_size, out ulong)
LYC_BLITTABLE_OUT(int32_t *out_count, out int)
LYC_BLITTABLE_IN(void *, IntPtr)
LYC_BLITTABLE_IN(const int64_t *shape, long*)
LYC_BLITTABLE_IN(const char *const *, byte**)
LYC_BLITTABLE_IN(char *buffer, byte[])

/* ---- Text: UTF-8, not the system's code page --------------------------------------------------------------------------- */

%typemap(imtype, out="IntPtr") const char * "byte[]"
%typemap(cstype) const char * "string"
%typemap(csin) const char * "Utf8.Encode($csinput)"
%typemap(csout, excode="") const char * "{ return Utf8.Decode($imcall); }"
%typemap(out) const char * "$result = (char *)$1;"

%define LYC_TEXT_OUT(PARAMETER)
%typemap(imtype) const char **PARAMETER "out IntPtr"
%typemap(cstype) const char **PARAMETER "out string"
%typemap(csin, pre="    IntPtr made_$csinput = IntPtr.Zero;", post="      $csinput = Utf8.Decode(made_$csinput);")
    const char **PARAMETER "out made_$csinput"
%enddef
LYC_TEXT_OUT(out_name)
LYC_TEXT_OUT(out_key)
LYC_TEXT_OUT(out_value)

/* ---- The header's types -------------------------------------------------------------------------------------------------- */

%define LYC_ENUM(T, NAME)
%ignore T;
%typemap(ctype) T "int"
%typemap(imtype) T "NAME"
%typemap(cstype) T "NAME"
%typemap(csin) T "$csinput"
%typemap(csout, excode="") T "{ return $imcall; }"
%enddef

/* As a result it becomes an exception. */
%define LYC_STATUS(T, NAME)
LYC_ENUM(T, NAME)
%typemap(cstype, out="void") T "NAME"
%typemap(csout, excode="") T "{ LycorisException.ThrowIfFailed($imcall); }"
%enddef

%define LYC_HANDLE(T, NAME)
%ignore T;
%ignore T##_retain;  /* the runtime counts for itself */
%ignore T##_release; /* NAME##Handle does it */
LYC_BLITTABLE_IN(T *, NAME##Handle)
LYC_BLITTABLE_OUT(T **, out NAME##Handle)
LYC_BLITTABLE_IN(T *const *, IntPtr*)
%enddef

/* Pointers to blittable structs: they may be null, and an array is a pointer too. */
%define LYC_STRUCT(T, NAME)
%ignore T;
LYC_BLITTABLE_IN(T *, NAME*)
LYC_BLITTABLE_IN(const T *, NAME*)
%enddef
%define LYC_INFO(T, NAME)
LYC_STRUCT(T, NAME)
%enddef
%define LYC_OPTIONS(T, NAME)
LYC_STRUCT(T, NAME)
%enddef
%define LYC_EXEC(T, NAME)
LYC_STRUCT(T, NAME)
%enddef
