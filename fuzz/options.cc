// AddressSanitizer asks for these: its quarantine of freed memory alone would be half of what a
// target may take.
extern "C" const char* __asan_default_options();  // NOLINT(bugprone-reserved-identifier): its name
extern "C" const char* __asan_default_options() { return "quarantine_size_mb=32"; }  // NOLINT
