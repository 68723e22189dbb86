"""Scoring language models and their samples: likelihood, diversity, MAUVE, judged perplexity.

Evaluation belongs to the suite, not to a method: nothing here knows how a network is built or
how text was made. Models come in as functions of tokens. transformers and mauve take seconds to
import, so only the functions that need them do.
"""
