"""`regraft demo`: `regraft graft` on a recipe of this package that trains its own small models."""
