"""Merging in float32 streams: the plan tensor by tensor, its execution, and adapters as output."""
