"""Models and adapters as files of llama.cpp: one GGUF, with the record of the export in it."""
