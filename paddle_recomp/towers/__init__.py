"""CLIP's two towers, LLaVA's projector, and the visual encoder that they make up (Paddle)."""
