"""Exchange of keys and values between the ranks of a sequence: gather, ring, Ulysses."""
