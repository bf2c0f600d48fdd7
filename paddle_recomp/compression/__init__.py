"""The compressor: tensor operations, and one pure function per method (Paddle)."""
