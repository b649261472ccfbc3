"""The parts of the fuzzer: what is read, how it is damaged, how a command runs on it."""
