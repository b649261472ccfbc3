"""A model behind an OpenAI-compatible API, examined like a loaded one.

`protocol` writes requests and reads replies, `probe` finds out which of them a server understands,
`model` answers prompts by many requests at once, `source` describes the model in a result.
"""
