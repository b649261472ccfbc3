"""Writing: an output folder, staged and published by rename, and the tensors of a model in it."""
