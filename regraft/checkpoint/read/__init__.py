"""Reading: the files of a model, the headers of its shards, its tensors one at a time."""
