"""The parts of sources as tasks of a datatrove pipeline, on this machine or a cluster."""
