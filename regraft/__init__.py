"""regraft: lift a capability off one model and graft it onto its relatives."""

from __future__ import annotations

__version__ = "0.1.0"
