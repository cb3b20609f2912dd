"""Models of the diffusers library, in and out."""
