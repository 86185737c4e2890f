"""The steps of normalisation: each changes a model in place and says what it changed."""
