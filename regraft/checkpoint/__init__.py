"""Models on disk: `source` reads them, `sink` writes them, `roles` says which tensor is what."""
