"""Question-guided, recoverable compression of visual tokens for LLaVA-class models."""

__version__ = "0.1.0"
