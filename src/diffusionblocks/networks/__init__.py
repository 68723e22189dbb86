"""Plain backbones: each has an input side, a list of layers and an output side."""
