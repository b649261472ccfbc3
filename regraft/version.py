"""The version of regraft, known without an installed package."""

VERSION = "0.1.0"
