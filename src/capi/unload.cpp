// The C++ runtime reserves some 70 KB at load, so that exceptions can be thrown when memory is gone, and leaves them to
// the end of the process. We bring our own copy of it into processes that load and unload us, so we give them back.
// Only for libraries with the runtime inside: a shared one is not ours to empty.

namespace __gnu_cxx {
void __freeres();  // of libstdc++; it has no public declaration
}

namespace {
__attribute__((destructor)) void release_exception_memory() { __gnu_cxx::__freeres(); }
}  // namespace
