"""Clips: what one says of itself, what its bytes and pictures say, and what a registry can conclude from both."""
