"""The stages of a job: what each reads, how it is run and checked."""
