"""A merge recipe: its YAML, schema, references to models, and the parameters of each tensor."""
