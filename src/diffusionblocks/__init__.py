"""DiffusionBlocks (arXiv 2506.14202): block-wise training of transformers as denoisers."""

__version__ = "0.1.0"
