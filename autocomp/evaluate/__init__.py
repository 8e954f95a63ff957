"""Measuring assembled models: KL to the base and perplexity on fixed text."""
